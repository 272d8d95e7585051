package mirror

import (
	"strconv"
	"strings"
)

// byteRange reads a Range header with one range. Headers that it doesn't
// understand mean the whole, as HTTP has it; ok is false for a range outside.
func byteRange(h string, size int64) (off, end int64, partial, ok bool) {
	spec, isBytes := strings.CutPrefix(h, "bytes=")
	if !isBytes || strings.Contains(spec, ",") {
		return 0, size, false, true
	}
	first, last, dash := strings.Cut(spec, "-")
	if !dash {
		return 0, size, false, true
	}
	if first == "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n <= 0 {
			return 0, size, false, err != nil
		}
		return max(0, size-n), size, true, size > 0
	}
	off, err := strconv.ParseInt(first, 10, 64)
	if err != nil || off < 0 {
		return 0, size, false, true
	}
	end = size
	if last != "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n < off {
			return 0, size, false, true
		}
		if n < size-1 {
			end = n + 1
		}
	}
	return off, end, true, off < size
}
