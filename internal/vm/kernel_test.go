package vm

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestParseSpec(t *testing.T) {
	for spec, want := range map[string]source{
		"6.12":                       {suite: "trixie", pkg: metaPackage},
		"sid":                        {suite: "sid", pkg: metaPackage},
		"trixie-backports":           {suite: "trixie-backports", pkg: metaPackage},
		"bookworm/linux-image-amd64": {suite: "bookworm", pkg: "linux-image-amd64"},
		"trixie/linux-image-6.12.48+deb13-amd64=6.12.48-1~x": {suite: "trixie", pkg: "linux-image-6.12.48+deb13-amd64", version: "6.12.48-1~x"},
		"/tmp/a.deb+b.deb":           {debs: []string{"/tmp/a.deb", "b.deb"}},
		"./boot/vmlinuz-6.6.0":       {image: "./boot/vmlinuz-6.6.0"},
		"/src/arch/x86/boot/bzImage": {image: "/src/arch/x86/boot/bzImage"},
	} {
		got, err := parseSpec(spec)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v, want %+v", spec, got, err, want)
		}
	}
	for _, spec := range []string{"", "9.9", "Sid", "-o", "a b", "sid/-o", "sid/linux=-x", "../etc", "sid/a/b"} {
		if err := CheckSpec(spec); err == nil || Hint(err) == "" {
			t.Errorf("%q: %v, want an error with a hint", spec, err)
		}
	}
}

func TestDefaultKernelsAreNames(t *testing.T) {
	for _, name := range DefaultKernels {
		if suites[name] == "" {
			t.Errorf("%s has no suite", name)
		}
	}
	if len(DefaultKernels) != len(suites) {
		t.Errorf("%d default kernels of %d", len(DefaultKernels), len(suites))
	}
}

func TestParseStanza(t *testing.T) {
	got := parseStanza("Package: a\nVersion: 1:2-3\nDescription: x\n more: y\nDepends: b, c\n\nPackage: other\nVersion: 9\n")
	want := map[string]string{"Package": "a", "Version": "1:2-3", "Description": "x", "Depends": "b, c"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestParseDepends(t *testing.T) {
	got := parseDepends("linux-image-6.1 (= 6.1.5-1), kmod, dracut | initramfs-tools (>= 0.1), perl:any, libc6 (>= 2.3),, ${x}")
	want := []dependency{{"linux-image-6.1", "6.1.5-1"}, {"kmod", ""}, {"dracut", ""}, {"perl", ""}, {"libc6", ""}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestPickMirror(t *testing.T) {
	for _, c := range []struct{ lines, want string }{
		{"Google|Google|https://x.example/apt/\nDebian|Debian|http://m.example/debian/\n", "http://m.example/debian"},
		{"Debian|Debian-Security|http://m.example/debian-security/\nDebian|Debian|http://m.example/d\n", "http://m.example/d"},
		// Before apt has fetched its lists.
		{"||https://x.example/apt/\n||http://m.example/debian/\n", "http://m.example/debian"},
		{"Debian|Debian|cdrom:[Debian]/\n", ""},
		{"Ubuntu|Ubuntu|http://u.example/ubuntu/\n", ""},
		{"", ""},
	} {
		if got := pickMirror(c.lines); got != c.want {
			t.Errorf("%q: %q, want %q", c.lines, got, c.want)
		}
	}
}

func TestTheEnvironmentsMirrorComesFirst(t *testing.T) {
	t.Setenv(mirrorVariable, "http://mirror.example/debian/")
	got, err := debianMirror(context.Background())
	if err != nil || got != "http://mirror.example/debian" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAKeyringThatIsNotThereIsSaidSo(t *testing.T) {
	t.Setenv(keyringVariable, filepath.Join(t.TempDir(), "none.gpg"))
	if _, err := debianKeyring(); err == nil || Hint(err) == "" {
		t.Errorf("%v, want an error with a hint", err)
	}
}

func TestSecuritySuitesAreInTheirOwnArchive(t *testing.T) {
	for suite, want := range map[string]string{
		"bookworm":          " http://m.example/debian bookworm main",
		"bookworm-security": " http://m.example/debian-security bookworm-security main",
	} {
		dir := t.TempDir()
		if _, err := newApt(dir, suite, "http://m.example/debian", "/k.gpg"); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(dir, "sources.list"))
		if err != nil || !strings.Contains(string(text), want) || !strings.Contains(string(text), "signed-by=/k.gpg") {
			t.Errorf("%s: %q, %v, want %q in it", suite, text, err, want)
		}
	}
}

// makeDeb packs files into a Debian package.
func makeDeb(t *testing.T, dir, name string, files map[string]string) string {
	t.Helper()
	root := filepath.Join(dir, name)
	files["DEBIAN/control"] = "Package: " + name + "\nVersion: 1\nArchitecture: amd64\nMaintainer: none <none@example.org>\nDescription: none\n"
	for file, text := range files {
		file = filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	deb := filepath.Join(dir, name+".deb")
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "-b", root, deb).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v: %s", err, out)
	}
	return deb
}

func TestStoreUnpacksAKernelOnce(t *testing.T) {
	dir := t.TempDir()
	image := makeDeb(t, dir, "linux-binary", map[string]string{"usr/lib/modules/6.6.1-x/vmlinuz": "image"})
	modules := makeDeb(t, dir, "linux-modules", map[string]string{"usr/lib/modules/6.6.1-x/modules.builtin": ""})
	spec := image + "+" + modules
	var log strings.Builder
	s := &Store{Dir: filepath.Join(dir, "kernels"), Log: &log}

	// Several at the same time, as several test runs may be.
	kernels := make([]Kernel, 4)
	errs := make([]error, 4)
	var wg sync.WaitGroup
	for i := range kernels {
		wg.Go(func() {
			store := &Store{Dir: s.Dir}
			if i == 0 {
				store = s
			}
			kernels[i], errs[i] = store.Get(context.Background(), spec)
		})
	}
	wg.Wait()
	for i, k := range kernels {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		if !reflect.DeepEqual(k, kernels[0]) {
			t.Errorf("%+v and %+v", k, kernels[0])
		}
	}
	k := kernels[0]
	if k.Release != "6.6.1-x" || filepath.Base(k.ModuleDir) != "6.6.1-x" || k.Name != spec {
		t.Errorf("%+v", k)
	}
	if text, err := os.ReadFile(k.Image); err != nil || string(text) != "image" {
		t.Errorf("the image is %q, %v", text, err)
	}
	left, err := filepath.Glob(filepath.Join(s.Dir, ".fetch-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %q, %v", left, err)
	}
	if err := s.Remove(spec); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(k.Image); err == nil {
		t.Error("the kernel is still there")
	}
}

func TestStoreRefusesPackagesThatAreNoKernel(t *testing.T) {
	dir := t.TempDir()
	s := &Store{Dir: filepath.Join(dir, "kernels")}
	for name, files := range map[string]map[string]string{
		"no-image":   {"usr/share/doc/x": "x"},
		"no-modules": {"boot/vmlinuz-6.6.1-x": "image"},
		"two-images": {"boot/vmlinuz-1": "image", "boot/vmlinuz-2": "image"},
	} {
		if k, err := s.Get(context.Background(), makeDeb(t, dir, name, files)); err == nil {
			t.Errorf("%s: got %+v", name, k)
		}
	}
	if _, err := s.Get(context.Background(), filepath.Join(dir, "nowhere.deb")); err == nil {
		t.Error("a package that is not there was read")
	}
	kept, err := filepath.Glob(filepath.Join(s.Dir, "*", recordFile))
	if err != nil || len(kept) > 0 {
		t.Errorf("kept: %q, %v", kept, err)
	}
}

func TestABareImageIsTakenAsItIs(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "boot", "vmlinuz-6.6.1-x")
	moduleDir := filepath.Join(dir, "lib", "modules", "6.6.1-x")
	for _, d := range []string{filepath.Dir(image), moduleDir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(image, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s := &Store{Dir: filepath.Join(dir, "kernels")}
	k, err := s.Get(context.Background(), image)
	if err != nil || k.Image != image || k.Release != "6.6.1-x" || k.ModuleDir != "" {
		t.Errorf("without modules: %+v, %v", k, err)
	}
	if err := os.WriteFile(filepath.Join(moduleDir, "modules.builtin"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	k, err = s.Get(context.Background(), image)
	if err != nil || k.ModuleDir != moduleDir {
		t.Errorf("with modules: %+v, %v", k, err)
	}
}
