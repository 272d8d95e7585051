package uplink

// Class says how urgent a transfer is; the lower goes first.
type Class uint8

// The classes, in their order.
const (
	Demand     Class = iota // somebody waits for it
	Hot                     // somebody will, as an earlier start did
	Ahead                   // somebody may, next
	Prefetch                // was asked to be complete
	Background              // fills idle time
)

// NumClasses is how many there are.
const NumClasses = int(Background) + 1

// String returns the class's name as users see it.
func (c Class) String() string {
	return [...]string{"demand", "hot", "ahead", "prefetch", "background", "none"}[min(int(c), NumClasses)]
}
