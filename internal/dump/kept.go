package dump

import (
	"maps"
	"slices"
)

// Bounds of what a preamble repeats, in bytes of each of two generations: with
// both full it still fits a frame.
const (
	keptSpaces    = 200 << 10
	keptProcesses = 1400 << 10
)

// kept is what was told last by a number: all of it up to a bound, and beyond
// it what was told or used not long ago.
type kept[V any] struct {
	most       int // bytes of a generation
	size       int // of the young
	young, old map[uint32]sized[V]
}

type sized[V any] struct {
	value V
	size  int // bytes that it takes in a frame at most
}

func (k *kept[V]) put(number uint32, v V, size int) {
	delete(k.old, number)
	if had, ok := k.young[number]; ok {
		k.size -= had.size
		delete(k.young, number)
	}
	if k.young == nil || k.size+size > k.most {
		k.young, k.old, k.size = make(map[uint32]sized[V]), k.young, 0
	}
	k.young[number] = sized[V]{v, size}
	k.size += size
}

// touch is called when something is used.
func (k *kept[V]) touch(number uint32) {
	if s, ok := k.old[number]; ok {
		k.put(number, s.value, s.size)
	}
}

func (k *kept[V]) each(f func(V)) {
	for _, generation := range []map[uint32]sized[V]{k.old, k.young} {
		for _, number := range slices.Sorted(maps.Keys(generation)) {
			f(generation[number].value)
		}
	}
}
