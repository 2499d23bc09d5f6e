//go:build race

package dump

// raced says that the race detector makes all of this many times slower.
const raced = true
