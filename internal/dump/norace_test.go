//go:build !race

package dump

const raced = false
