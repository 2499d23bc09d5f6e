package launch

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What needs root is tested in internal/kerneltest, on every kernel.

func TestStatus(t *testing.T) {
	for _, c := range []struct {
		s    Status
		exit int
		text string
	}{
		{Status{}, 0, "exit status 0"},
		{Status{Code: 255}, 255, "exit status 255"},
		{Status{Signal: syscall.SIGINT}, 130, "killed by SIGINT"},
		{Status{Signal: syscall.SIGTERM}, 143, "killed by SIGTERM"},
		{Status{Signal: 40}, 168, "killed by signal 40"},
	} {
		assert.Equal(t, c.exit, c.s.Exit())
		assert.Equal(t, c.text, c.s.String())
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	tool := filepath.Join(dir, "tool")
	require.NoError(t, os.WriteFile(tool, []byte("#!/bin/sh\n"), 0o755))
	plain := filepath.Join(dir, "plain")
	require.NoError(t, os.WriteFile(plain, nil, 0o644))

	t.Setenv("PATH", dir)
	path, err := Find("tool")
	require.NoError(t, err)
	assert.Equal(t, tool, path)
	// Whoever has "." in PATH means it.
	t.Chdir(dir)
	t.Setenv("PATH", ".")
	_, err = Find("tool")
	require.NoError(t, err)

	// One that cannot be executed is passed over for one that can.
	other := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(other, "tool"), nil, 0o644))
	t.Setenv("PATH", other+":"+dir)
	path, err = Find("tool")
	require.NoError(t, err)
	assert.Equal(t, tool, path)
	require.NoError(t, os.Mkdir(filepath.Join(other, "directory"), 0o755))
	for _, name := range []string{"plain", "directory"} {
		_, err = Find(name)
		require.EqualError(t, err, "running "+name+": permission denied")
	}

	for name, want := range map[string]Error{
		"nowhere":                   {127, nil},
		"plain":                     {126, nil},
		filepath.Join(dir, "no"):    {127, nil},
		filepath.Join(plain, "sub"): {126, nil},
		plain:                       {126, nil},
		dir:                         {126, nil},
	} {
		_, err := Find(name)
		var not *Error
		require.ErrorAs(t, err, &not, name)
		assert.Equal(t, want.Status, not.Status, name)
		assert.ErrorContains(t, err, "running "+name+": ")
	}
}

// TestCgroupLeft: what the command put into a cgroup of its own stays there.
func TestCgroupLeft(t *testing.T) {
	c, err := newCgroup()
	require.NoError(t, err, "this test needs root, and cgroup v2")
	own := filepath.Join(c.dir, "own")
	require.NoError(t, os.MkdirAll(filepath.Join(own, "empty"), 0o755))
	start := func(dir string) *exec.Cmd {
		cmd := exec.Command("sleep", "60")
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		require.NoError(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), strconv.AppendInt(nil, int64(cmd.Process.Pid), 10), 0))
		return cmd
	}
	in := func(cmd *exec.Cmd) string {
		path, err := unified(strconv.Itoa(cmd.Process.Pid))
		require.NoError(t, err)
		return path
	}
	a, b := start(c.dir), start(own)
	left, err := c.remove()
	require.NoError(t, err)
	assert.Equal(t, c.dir, left)
	assert.Equal(t, filepath.Dir(c.path), in(a), "it was put there for the run")
	assert.Equal(t, filepath.Join(c.path, "own"), in(b))

	require.NoError(t, b.Process.Kill())
	_ = b.Wait()
	left, err = c.remove()
	require.NoError(t, err)
	assert.Empty(t, left)
	assert.NoDirExists(t, c.dir)
}

func TestUnified(t *testing.T) {
	path, err := unified("self")
	if err != nil {
		require.ErrorIs(t, err, os.ErrNotExist, "there is no cgroup of version 2 here")
		return
	}
	assert.Equal(t, "/", path[:1])
	_, err = unified("0")
	require.Error(t, err)
}
