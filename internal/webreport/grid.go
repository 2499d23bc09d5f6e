package webreport

import "math"

// minWidth is the narrowest bucket, ns: a 512th of a second, so that doubling
// comes by 125 ms, 250 ms, 500 ms, 1 s, 2 s.
const minWidth = int64(1e9 / 512)

// grid is a time series of bounded length: buckets of one width, aligned to
// 1970, that double in width when there would be too many.
type grid[T any] struct {
	max   int   // buckets
	width int64 // ns, minWidth times a power of two
	first int64 // number of the first bucket since 1970
	cells []T
	merge func(into *T, later T) // of two neighbours
}

func newGrid[T any](most int, merge func(into *T, later T)) *grid[T] {
	return &grid[T]{max: most, width: minWidth, merge: merge}
}

// at returns the bucket of a wall-clock time in ns; nil for times before 1970,
// which no clock tells. It is valid until the next call.
func (g *grid[T]) at(t int64) *T {
	if t <= 0 || t > math.MaxInt64/2 {
		return nil
	}
	i := t / g.width
	if len(g.cells) == 0 {
		g.first = i
		g.cells = append(g.cells, *new(T))
	}
	for i-g.first >= int64(g.max) || g.last()-i >= int64(g.max) {
		g.widen()
		i = t / g.width
	}
	if i < g.first {
		cells := make([]T, int(g.last()-i)+1, g.max)
		copy(cells[g.first-i:], g.cells)
		g.cells, g.first = cells, i
	}
	for g.last() < i {
		g.cells = append(g.cells, *new(T))
	}
	return &g.cells[i-g.first]
}

func (g *grid[T]) last() int64 { return g.first + int64(len(g.cells)) - 1 }

// widen makes one bucket of each two.
func (g *grid[T]) widen() {
	first := g.first / 2
	cells := make([]T, 0, len(g.cells)/2+1)
	for i, c := range g.cells {
		at := int((g.first+int64(i))/2 - first)
		if at == len(cells) {
			cells = append(cells, c)
		} else {
			g.merge(&cells[at], c)
		}
	}
	g.cells, g.first, g.width = cells, first, 2*g.width
}
