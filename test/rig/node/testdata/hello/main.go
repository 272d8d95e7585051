// Command hello is the container of the tests: it says who it is, does what
// its arguments ask for, and waits.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	fmt.Println("starting as", os.Args)
	if len(os.Args) > 1 && os.Args[1] == "fail" {
		fmt.Println("cannot go on")
		os.Exit(7)
	}
	if len(os.Args) > 1 && os.Args[1] == "end" {
		fmt.Println("done")
		return
	}
	host, err := os.ReadFile("/proc/net/dev") // the network that it is in
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Printf("%s\ngreeting=%s\nready to serve\n", host, os.Getenv("GREETING"))
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
}
