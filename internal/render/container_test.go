package render

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tcptrace/tcptrace/internal/container"
	"github.com/tcptrace/tcptrace/internal/diagnose"
)

// TestContainer shows an owner that runs in a container, and one whose
// container has a name that would do harm.
func TestContainer(t *testing.T) {
	docker := &container.Container{Runtime: "docker", ID: strings.Repeat("3f1c0a9b2d4e0000", 4)}
	v := overflow(diagnose.PhaseNew, 1)
	v.Process.Cgroup, v.Process.Container = "/docker/"+docker.ID, docker
	c := client()
	c.Process.Cgroup, c.Process.Container = "/lxc/"+hostile, &container.Container{Runtime: "lxc", ID: hostile}

	var text bytes.Buffer
	r := NewText(&text, TextOptions{Width: 200})
	require.NoError(t, r.Verdict(v))
	require.NoError(t, r.Connection(c))
	require.NoError(t, r.Flush())
	assert.Contains(t, text.String(), "nginx[812] in docker 3f1c0a9b2d4e, netns")
	assert.Contains(t, text.String(), "in lxc "+Safe(hostile))
	assert.NotContains(t, text.String(), "\x1b")

	var lines bytes.Buffer
	j := NewJSON(&lines)
	require.NoError(t, j.Verdict(v))
	require.NoError(t, j.Connection(c))
	require.NoError(t, j.Flush())
	assert.Contains(t, lines.String(), `"cgroup":"/docker/`+docker.ID+`","container":{"runtime":"docker","id":"`+docker.ID+`"}`)
	assert.NotContains(t, lines.String(), "\x1b")
}
