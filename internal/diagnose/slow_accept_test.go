package diagnose

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestWaits checks that every time falls into the bucket that says so.
func TestWaits(t *testing.T) {
	for us := int64(0); us < 1<<34; us += 1 + us/37 {
		d := time.Duration(us) * time.Microsecond
		b := bucketOf(d)
		if start := bucketStart(b); d < start {
			t.Fatalf("%v is in bucket %d, which starts at %v", d, b, start)
		}
		if last := len(waits{}.buckets) - 1; b < last && d >= bucketStart(b+1) {
			t.Fatalf("%v is in bucket %d, but bucket %d starts at %v", d, b, b+1, bucketStart(b+1))
		}
	}
	if b := bucketOf(-time.Second); b != 0 {
		t.Errorf("a negative time is in bucket %d", b)
	}
}

// TestMedian holds the sketch against the true median.
func TestMedian(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var past, now waits
		var all []time.Duration
		for range 1 + r.IntN(300) {
			d := time.Duration(1000+r.Int64N(1<<(10+r.Int64N(26)))) * time.Nanosecond * 8
			all = append(all, d)
			if r.IntN(2) == 0 {
				past.add(d, false)
			} else {
				now.add(d, true)
			}
		}
		slices.Sort(all)
		want, got := all[(len(all)-1)/2], median(&past, &now)
		if diff := (got - want).Abs(); diff > want*13/100+time.Microsecond {
			t.Fatalf("of %d times the median is %v, not %v", len(all), want, got)
		}
		if past.all+now.all != uint64(len(all)) || past.slow != 0 || now.slow != now.all {
			t.Fatalf("counts %d+%d and %d+%d slow, of %d", past.all, now.all, past.slow, now.slow, len(all))
		}
	}
	if m := median(&waits{}, &waits{}); m != 0 {
		t.Errorf("the median of nothing is %v", m)
	}
}
