package link

import "time"

// Stats is what has happened on a link since it began.
type Stats struct {
	Elapsed  time.Duration `json:"elapsed_ns"`
	Profile  Profile       `json:"profile"`
	Mode     Mode          `json:"mode"`
	Dark     bool          `json:"dark"`     // down now, by command or by timetable
	Priority string        `json:"priority"` // what the emulator runs as: realtime, nice or normal

	Down DirectionStats `json:"down"` // shore to node
	Up   DirectionStats `json:"up"`   // node to shore
}

// DirectionStats counts the packets of one direction. Every packet that was
// offered is delivered, dropped for one of four reasons, or still under way.
type DirectionStats struct {
	Offered       Count `json:"offered"`
	Delivered     Count `json:"delivered"`
	QueueDropped  Count `json:"queue_dropped"`  // the queue was full
	LossDropped   Count `json:"loss_dropped"`   // noise
	OutageDropped Count `json:"outage_dropped"` // cut, or an outage of the timetable
	Blackholed    Count `json:"blackholed"`     // no link this way, blackhole or reset

	// KernelDropped counts packets that never reached the emulator because
	// it was too slow to fetch them. Figures taken while it grows are void.
	KernelDropped uint64 `json:"kernel_dropped"`

	// Connections counts TCP connections that were opened in this direction,
	// by their first SYN; SYNs counts those that were repeated, too.
	Connections uint64 `json:"connections"`
	SYNs        uint64 `json:"syns"`
	Resets      uint64 `json:"resets"` // RSTs that the emulator sent back

	Queue    int64         `json:"queue"`     // bytes waiting now
	MaxQueue int64         `json:"max_queue"` // most bytes that ever waited
	InAir    int           `json:"in_air"`    // packets sent but not arrived
	MaxLate  time.Duration `json:"max_late_ns"`
}

// Dropped returns all that was lost, for whatever reason.
func (d DirectionStats) Dropped() Count {
	var sum Count
	for _, c := range []Count{d.QueueDropped, d.LossDropped, d.OutageDropped, d.Blackholed} {
		sum.Packets += c.Packets
		sum.Bytes += c.Bytes
	}
	return sum
}

// Since returns what has happened since an earlier reading. Gauges, maxima,
// profile and mode are those of the later one.
func (s Stats) Since(earlier Stats) Stats {
	s.Elapsed -= earlier.Elapsed
	s.Down = s.Down.since(earlier.Down)
	s.Up = s.Up.since(earlier.Up)
	return s
}

func (d DirectionStats) since(e DirectionStats) DirectionStats {
	d.Offered = d.Offered.minus(e.Offered)
	d.Delivered = d.Delivered.minus(e.Delivered)
	d.QueueDropped = d.QueueDropped.minus(e.QueueDropped)
	d.LossDropped = d.LossDropped.minus(e.LossDropped)
	d.OutageDropped = d.OutageDropped.minus(e.OutageDropped)
	d.Blackholed = d.Blackholed.minus(e.Blackholed)
	d.KernelDropped -= e.KernelDropped
	d.Connections -= e.Connections
	d.SYNs -= e.SYNs
	d.Resets -= e.Resets
	return d
}
