package timeline

import (
	"testing"
	"unsafe"
)

func TestSizes(t *testing.T) {
	if n := unsafe.Sizeof(Conn{}); n > 240 {
		t.Errorf("Conn is %d bytes", n)
	}
	t.Log(unsafe.Sizeof(Conn{}))
	if n := unsafe.Sizeof(Entry{}); n != 16 {
		t.Errorf("Entry is %d bytes", n)
	}
}
