package toc

import (
	"encoding/binary"
	"errors"
	"strconv"
)

// FooterSize is how many bytes the footer of an eStargz blob has.
const FooterSize = 51

// ParseFooter returns where the table of contents begins, as the last bytes of an
// eStargz blob say: an empty gzip member whose extra field "SG" is the offset in 16
// hex digits and the word STARGZ. The offset is above 0; whether it lies in the blob
// is for the caller to see.
func ParseFooter(tail []byte) (offset int64, err error) {
	bad := errors.New("it has no eStargz footer")
	if len(tail) < FooterSize {
		return 0, bad
	}
	b := tail[len(tail)-FooterSize:]
	extra := b[12 : 12+26]
	if b[0] != 0x1f || b[1] != 0x8b || b[3]&4 == 0 || binary.LittleEndian.Uint16(b[10:]) != 26 ||
		extra[0] != 'S' || extra[1] != 'G' || binary.LittleEndian.Uint16(extra[2:]) != 22 || string(extra[20:]) != "STARGZ" {
		return 0, bad
	}
	offset, err = strconv.ParseInt(string(extra[4:20]), 16, 64)
	if err != nil || offset <= 0 {
		return 0, bad
	}
	return offset, nil
}
