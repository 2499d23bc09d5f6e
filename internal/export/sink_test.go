package export

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/tracer/event"
)

// Names of network namespaces take little, whatever a dump has.
func TestNamesOfNamespacesAreBounded(t *testing.T) {
	s := make(spaces)
	long := strings.Repeat("\x01", 4096)
	for i := range uint32(10_000) {
		s.learn(event.Namespace{Inode: i, Name: long})
	}
	require.LessOrEqual(t, len(s), maxSpaces)
	require.Equal(t, strings.Repeat(`\x01`, maxSpaceName)+"…", s[9999])
	s.learn(event.Namespace{Inode: 9999, Name: "blue"})
	s.learn(event.Namespace{Inode: 9999})
	require.Equal(t, "blue", s[9999])
}
