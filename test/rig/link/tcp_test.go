package link

import (
	"encoding/binary"
	"encoding/hex"
	"testing"
)

// synPacket is a real SYN from 10.18.0.2:40000 to 10.18.0.1:80, sequence
// 0x01020304, with 20 bytes of options.
func synPacket(tb testing.TB) []byte {
	tb.Helper()
	data, err := hex.DecodeString("4500003c1c4640004006" + "0000" + "0a120002" + "0a120001" +
		"9c40" + "0050" + "01020304" + "00000000" + "a002faf0" + "0000" + "0000" +
		"020405b40402080a000000000000000001030307")
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

func TestResetAnswersASYN(t *testing.T) {
	s, ok := parseSegment(synPacket(t))
	if !ok || !s.opens() {
		t.Fatalf("not seen as a SYN: %+v", s)
	}
	answer, ok := s.reset()
	if !ok {
		t.Fatal("no answer")
	}
	// From 10.18.0.1:80 to 10.18.0.2:40000, sequence 0, acknowledges one more.
	want := "45000028000040004006" + "26aa" + "0a120001" + "0a120002" +
		"0050" + "9c40" + "00000000" + "01020305" + "50140000"
	if got := hex.EncodeToString(answer[:36]); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if sum(0, answer[:20]) != 0xffff {
		t.Error("wrong IP checksum")
	}
	if sum(protoTCP+tcpHeader+uint32(sum(0, answer[12:20])), answer[20:]) != 0xffff {
		t.Error("wrong TCP checksum")
	}
	if s, ok := parseSegment(answer); !ok {
		t.Error("the answer is no segment")
	} else if _, ok := s.reset(); ok {
		t.Error("a reset is answered with a reset")
	}
}

func TestResetAnswersAnEstablishedConnection(t *testing.T) {
	data := synPacket(t)
	data[33] = flagACK
	binary.BigEndian.PutUint32(data[28:], 0x0a0b0c0d)
	s, ok := parseSegment(data)
	if !ok || s.opens() {
		t.Fatalf("seen as a SYN: %+v", s)
	}
	answer, _ := s.reset()
	if answer[33] != flagRST || binary.BigEndian.Uint32(answer[24:]) != 0x0a0b0c0d {
		t.Errorf("answer %x does not continue at the acknowledged byte", answer)
	}
}

func TestConnectionsAreCountedOnce(t *testing.T) {
	var f flows
	s, _ := parseSegment(synPacket(t))
	if !f.add(s.flow) || f.add(s.flow) {
		t.Error("a repeated SYN is a new connection")
	}
	again := s.flow
	again.sequence++
	if !f.add(again) {
		t.Error("a reused port is not a new connection")
	}
	for i := range 3 * knownFlows {
		other := s.flow
		other.sequence += uint32(i) + 10
		f.add(other)
	}
	if len(f.known) != knownFlows || f.order.len() != knownFlows {
		t.Errorf("remembers %d and %d", len(f.known), f.order.len())
	}
}

func FuzzParseSegment(f *testing.F) {
	syn := synPacket(f)
	f.Add(syn)
	f.Add(syn[:39])
	fragment := synPacket(f)
	fragment[7] = 1
	f.Add(fragment)
	f.Add([]byte{0x60})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, ok := parseSegment(data)
		if !ok {
			return
		}
		answer, ok := s.reset()
		if !ok {
			return
		}
		back, ok := parseSegment(answer)
		if !ok || back.flags&flagRST == 0 || [4]byte(back.flow.addresses[4:]) != [4]byte(s.flow.addresses[:4]) {
			t.Errorf("%x is answered with %x", data, answer)
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"do":"stats"}`))
	f.Add([]byte(`{"do":"mode","mode":"cut"}`))
	f.Add([]byte(`{"do":"profile","profile":"geo-vsat"}`))
	f.Add([]byte(`{"do":"profile"}`))
	f.Add([]byte(`{"do":"schedule","outages":["30s/10m@1m"]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		q, err := parseRequest(line)
		if err != nil {
			return
		}
		if q.Do == "profile" && q.Profile.Validate() != nil {
			t.Errorf("%q: a profile that is impossible", line)
		}
	})
}
