// Package wire holds the messages of the link protocol as protoc generates them
// from link.proto. Nobody but package link and those who serve it need it.
package wire

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative link.proto
