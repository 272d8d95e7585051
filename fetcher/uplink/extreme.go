package uplink

// extreme is the greatest of the values that were seen in the last epochs,
// whatever an epoch is to its owner; for the least, add them negated. Values
// leave epoch by epoch, so memory is bounded and nothing is sorted.
type extreme struct {
	best  [epochs]float64
	epoch [epochs]int64 // that best is of, plus one; 0: none
}

// epochs is how many of them a value lasts, the current one counted.
const epochs = 8

func (x *extreme) add(epoch int64, v float64) {
	i := epoch % epochs
	if x.epoch[i] != epoch+1 {
		x.epoch[i], x.best[i] = epoch+1, v
		return
	}
	x.best[i] = max(x.best[i], v)
}

// get returns the greatest value; ok tells that there is one.
func (x *extreme) get(epoch int64) (best float64, ok bool) {
	for i, e := range x.epoch {
		if e > 0 && e+epochs > epoch+1 && (!ok || x.best[i] > best) {
			best, ok = x.best[i], true
		}
	}
	return best, ok
}
