package outfile

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	names := []string{}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func write(t *testing.T, path string, force bool, text string) error {
	t.Helper()
	f, err := Create(path, force)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte(text))
	require.NoError(t, err)
	return f.Commit()
}

func refused(t *testing.T, err error, is error, hint string) {
	t.Helper()
	var e *Error
	require.ErrorAs(t, err, &e)
	require.ErrorIs(t, err, is)
	require.Contains(t, e.Hint, hint)
}

func TestCommitPutsAWholeFileInPlace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	f, err := Create(path, false)
	require.NoError(t, err)
	_, err = f.Write([]byte("a"))
	require.NoError(t, err)
	require.NoFileExists(t, path, "it must not be there before it is whole")
	require.NoError(t, f.Commit())
	f.Abort() // does nothing
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "a", string(got))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(Mode), info.Mode())
	require.Equal(t, []string{"out"}, entries(t, dir))
	require.ErrorIs(t, f.Commit(), fs.ErrClosed)
}

func TestAbortLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	require.NoError(t, write(t, path, false, "old"))
	f, err := Create(path, true)
	require.NoError(t, err)
	_, err = f.Write([]byte("new"))
	require.NoError(t, err)
	f.Abort()
	f.Abort()
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "old", string(got))
	require.Equal(t, []string{"out"}, entries(t, dir))
}

func TestAFileIsReplacedOnlyByForce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	require.NoError(t, os.WriteFile(path, []byte("a longer old text"), 0o644))
	refused(t, write(t, path, false, "new"), fs.ErrExist, "--force")
	require.NoError(t, write(t, path, true, "new"))
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "new", string(got))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(Mode), info.Mode(), "the mode of what was there must not stay")
	require.Equal(t, []string{"out"}, entries(t, dir))
}

func TestAPlantedLinkIsNotFollowed(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(t.TempDir(), "victim")
	require.NoError(t, os.WriteFile(victim, []byte("precious"), 0o600))
	for name, target := range map[string]string{"to a file": victim, "dangling": filepath.Join(dir, "nowhere")} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.Symlink(target, path))
		for _, force := range []bool{false, true} {
			refused(t, write(t, path, force, "new"), fs.ErrExist, "link")
		}
		require.NoFileExists(t, filepath.Join(dir, "nowhere"))
	}
	got, err := os.ReadFile(victim)
	require.NoError(t, err)
	require.Equal(t, "precious", string(got))
}

// Whoever may write to the directory can act while the file is being written.
func TestAPlantedLinkOfTheMeantimeIsNotFollowed(t *testing.T) {
	for _, force := range []bool{false, true} {
		dir := t.TempDir()
		victim := filepath.Join(t.TempDir(), "victim")
		require.NoError(t, os.WriteFile(victim, []byte("precious"), 0o600))
		path := filepath.Join(dir, "out")
		f, err := Create(path, force)
		require.NoError(t, err)
		require.NoError(t, os.Symlink(victim, path))
		refused(t, f.Commit(), fs.ErrExist, "")
		got, err := os.ReadFile(victim)
		require.NoError(t, err)
		require.Equal(t, "precious", string(got))
		require.Equal(t, []string{"out"}, entries(t, dir))
	}
}

func TestSomebodyElsesFileOfTheMeantimeStays(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	f, err := Create(path, false)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, []byte("theirs"), 0o600))
	refused(t, f.Commit(), fs.ErrExist, "--force")
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "theirs", string(got))
	require.Equal(t, []string{"out"}, entries(t, dir))
}

// The directory is the one that was there at first, wherever it has gone.
func TestADirectoryThatIsSwapped(t *testing.T) {
	top := t.TempDir()
	dir, away, trap := filepath.Join(top, "dir"), filepath.Join(top, "away"), filepath.Join(top, "trap")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.Mkdir(trap, 0o700))
	f, err := Create(filepath.Join(dir, "out"), false)
	require.NoError(t, err)
	require.NoError(t, os.Rename(dir, away))
	require.NoError(t, os.Symlink(trap, dir))
	require.NoError(t, f.Commit())
	require.Empty(t, entries(t, trap))
	require.Equal(t, []string{"out"}, entries(t, away))
}

func TestWhatIsNoFileIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	sub := filepath.Join(dir, "sub")
	require.NoError(t, os.Mkdir(sub, 0o700))
	for _, force := range []bool{false, true} {
		refused(t, write(t, fifo, force, "x"), fs.ErrExist, "shell")
		refused(t, write(t, sub, force, "x"), fs.ErrExist, "file in it")
		refused(t, write(t, "/dev/null", force, "x"), fs.ErrExist, "shell")
	}
	info, err := os.Stat("/dev/null")
	require.NoError(t, err)
	require.NotZero(t, info.Mode()&fs.ModeDevice)
	require.Equal(t, []string{"fifo", "sub"}, entries(t, dir))
}

func TestBadPaths(t *testing.T) {
	dir := t.TempDir()
	refused(t, write(t, filepath.Join(dir, "no", "out"), false, "x"), fs.ErrNotExist, "mkdir -p")
	for _, path := range []string{"", ".", "..", dir + "/", dir + "/.."} {
		_, err := Create(path, true)
		var e *Error
		require.ErrorAs(t, err, &e, path)
		require.NotEmpty(t, e.Hint, path)
	}
	// A name of full length leaves no room for a suffix.
	require.NoError(t, write(t, filepath.Join(dir, strings.Repeat("x", 255)), false, "x"))
	_, err := Create(filepath.Join(dir, strings.Repeat("x", 256)), false)
	require.ErrorIs(t, err, unix.ENAMETOOLONG)
}
