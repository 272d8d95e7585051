package link

import "encoding/binary"

// Flags of a TCP segment.
const (
	flagFIN = 1 << 0
	flagSYN = 1 << 1
	flagRST = 1 << 2
	flagACK = 1 << 4
)

const (
	ipv4Header = 20 // bytes without options
	tcpHeader  = 20 // bytes without options
	protoTCP   = 6
)

// flow names a TCP connection attempt: addresses and ports as they stand in
// the packet, and the initial sequence number, so that a port that is used
// again counts again and a SYN that is repeated does not.
type flow struct {
	addresses [8]byte
	ports     [4]byte
	sequence  uint32
}

// segment is the TCP part of an IPv4 packet.
type segment struct {
	flow    flow
	ack     uint32
	flags   byte
	payload int // bytes
}

// parseSegment reads a TCP segment; ok is false for everything else, fragments
// behind the first and damaged headers included.
func parseSegment(data []byte) (s segment, ok bool) {
	if len(data) < ipv4Header || data[0]>>4 != 4 || data[9] != protoTCP {
		return segment{}, false
	}
	header := int(data[0]&0x0f) * 4
	total := int(binary.BigEndian.Uint16(data[2:]))
	offset := binary.BigEndian.Uint16(data[6:]) & 0x1fff
	if header < ipv4Header || offset != 0 || total > len(data) || total < header+tcpHeader {
		return segment{}, false
	}
	tcp := data[header:total]
	dataOffset := int(tcp[12]>>4) * 4
	if dataOffset < tcpHeader || dataOffset > len(tcp) {
		return segment{}, false
	}
	s.flow.addresses = [8]byte(data[12:20])
	s.flow.ports = [4]byte(tcp)
	s.flow.sequence = binary.BigEndian.Uint32(tcp[4:])
	s.ack = binary.BigEndian.Uint32(tcp[8:])
	s.flags = tcp[13]
	s.payload = len(tcp) - dataOffset
	return s, true
}

// opens reports whether the segment asks for a new connection.
func (s segment) opens() bool { return s.flags&(flagSYN|flagACK|flagRST) == flagSYN }

// reset returns the packet with which a host answers a segment of a
// connection that it doesn't know (RFC 9293, 3.10.7.1); ok is false for a
// reset, which must not be answered.
func (s segment) reset() (data []byte, ok bool) {
	if s.flags&flagRST != 0 {
		return nil, false
	}
	data = make([]byte, ipv4Header+tcpHeader)
	ip, tcp := data[:ipv4Header], data[ipv4Header:]
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(len(data))) //nolint:gosec // 40
	ip[6] = 0x40                                          // don't fragment
	ip[8] = 64                                            // hops
	ip[9] = protoTCP
	copy(ip[12:], s.flow.addresses[4:])
	copy(ip[16:], s.flow.addresses[:4])
	binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip))

	copy(tcp[0:], s.flow.ports[2:])
	copy(tcp[2:], s.flow.ports[:2])
	tcp[12] = tcpHeader / 4 << 4
	tcp[13] = flagRST
	if s.flags&flagACK != 0 {
		binary.BigEndian.PutUint32(tcp[4:], s.ack)
	} else {
		length := uint32(s.payload) //nolint:gosec // below 64 KiB
		if s.flags&flagSYN != 0 {
			length++
		}
		if s.flags&flagFIN != 0 {
			length++
		}
		binary.BigEndian.PutUint32(tcp[8:], s.flow.sequence+length)
		tcp[13] |= flagACK
	}
	pseudo := sum(protoTCP+tcpHeader, ip[12:20])
	binary.BigEndian.PutUint16(tcp[16:], ^sum(uint32(pseudo), tcp))
	return data, true
}

// sum is the Internet checksum (RFC 1071) before it is inverted. The length
// of data is even.
func sum(start uint32, data []byte) uint16 {
	total := start
	for i := 0; i < len(data); i += 2 {
		total += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

// knownFlows is how many connection attempts are remembered to tell a
// repeated SYN from a new one.
const knownFlows = 4096

// flows remembers the latest connection attempts.
type flows struct {
	known map[flow]struct{}
	order ring[flow] // oldest first
}

// add reports whether f is new.
func (s *flows) add(f flow) bool {
	if _, ok := s.known[f]; ok {
		return false
	}
	if s.known == nil {
		s.known = make(map[flow]struct{})
	}
	if s.order.len() == knownFlows {
		delete(s.known, s.order.pop())
	}
	s.order.push(f)
	s.known[f] = struct{}{}
	return true
}
