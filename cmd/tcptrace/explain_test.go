package main

import (
	"slices"
	"testing"
)

// TestLetters: every verdict has its case, and none is made up.
func TestLetters(t *testing.T) {
	for _, code := range codes() {
		if len(casesOf(code)) == 0 {
			t.Errorf("%s belongs to no case", code)
		}
	}
	for code := range letters {
		if !slices.Contains(codes(), code) {
			t.Errorf("there is no verdict %s", code)
		}
	}
}
