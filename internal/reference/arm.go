package reference

// arm goes through a section of code of arm64.
func (f *finder) arm(s *section, p []byte) {
	var page [32]int64 // by register: what adrp put there, -1 if nothing
	var from [32]int   // by register: where that was
	for i := range page {
		page[i] = -1
	}
	for at := -s.off & 3; at+4 <= len(p); at += 4 {
		v := le.Uint32(p[at:])
		here := s.address + int64(at)
		switch {
		case v>>26&0x1f == 5: // b, bl
			if t := here + int64(int32(v<<6))>>4; f.executable(t) {
				f.add(Branch26, s.off+at, t)
			}
		case v&0x9f000000 == 0x90000000: // adrp
			pages := int64(int32(v<<8))>>13<<2 | int64(v>>29&3)
			page[v&31], from[v&31] = here&^0xfff+pages<<12, at
		case v&0xffc00000 == 0x91000000: // add of 12 bits
			r := v >> 5 & 31
			if t := page[r] + int64(v>>10&0xfff); page[r] >= 0 && at-from[r] <= 32 && f.loaded(t) {
				f.add(Page21, s.off+from[r], t)
				f.add(Low12, s.off+at, t)
			}
			page[r] = -1
		}
	}
}
