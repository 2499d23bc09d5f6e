package vm

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Kernel is a kernel that can be booted.
type Kernel struct {
	// Name is the name that was asked for, such as "6.1".
	Name string `json:"name"`
	// Release is what uname -r says under it.
	Release string `json:"release"`
	// Image is the path of the boot image.
	Image string `json:"-"`
	// ModuleDir is the directory lib/modules/RELEASE; "" when there is none.
	ModuleDir string `json:"-"`
	// Packages are the Debian packages that it came from, as name=version.
	Packages []string `json:"packages,omitempty"`
}

// suites are the kernels that have a name of their own, and the Debian suite
// whose cloud kernel each is. Bookworm's is the security suite's because that
// is where tcp_v4_syn_recv_sock got its seventh argument:
// the harder of the two 6.1.
var suites = map[string]string{
	"5.10": "bullseye",
	"6.1":  "bookworm-security",
	"6.12": "trixie",
	"7.3":  "trixie-backports",
}

// DefaultKernels are the kernels of the test matrix, oldest first.
var DefaultKernels = []string{"5.10", "6.1", "6.12", "7.3"}

// metaPackage depends on a suite's newest kernel of the flavour without drivers
// for hardware.
const metaPackage = "linux-image-cloud-amd64"

// source says where a kernel comes from: a suite's package, or files.
type source struct {
	suite, pkg, version string
	debs                []string
	image               string
}

var (
	suiteName   = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9-]+)*$`)
	packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	versionText = regexp.MustCompile(`^[0-9][A-Za-z0-9.+~:-]*$`)
)

// SpecHelp tells how a kernel is named, for usage texts.
const SpecHelp = `5.10, 6.1, 6.12, 7.3           Debian's cloud kernels of these series
SUITE                          the cloud kernel of a Debian suite: sid, trixie, ...
SUITE/PACKAGE[=VERSION]        a package: bookworm/linux-image-amd64
FILE.deb[+FILE.deb...]         package files (image and modules may be apart)
PATH/vmlinuz...                a boot image; modules in ../lib/modules/RELEASE`

// CheckSpec returns an error when spec does not name a kernel as SpecHelp says.
// Whether there is such a kernel shows when it is fetched.
func CheckSpec(spec string) error {
	_, err := parseSpec(spec)
	return err
}

// parseSpec reads what a user names a kernel by.
func parseSpec(spec string) (source, error) {
	if suite, ok := suites[spec]; ok {
		return source{suite: suite, pkg: metaPackage}, nil
	}
	if strings.HasSuffix(spec, ".deb") {
		return source{debs: strings.Split(spec, "+")}, nil
	}
	if strings.HasPrefix(filepath.Base(spec), "vmlinuz") || strings.HasPrefix(filepath.Base(spec), "bzImage") {
		return source{image: spec}, nil
	}
	suite, pkg, given := strings.Cut(spec, "/")
	version := ""
	if given {
		pkg, version, _ = strings.Cut(pkg, "=")
	} else {
		pkg = metaPackage
	}
	if !suiteName.MatchString(suite) || !packageName.MatchString(pkg) ||
		(version != "" && !versionText.MatchString(version)) {
		return source{}, hinted(fmt.Errorf("no kernel is named %q", spec), "name one of:\n%s", SpecHelp)
	}
	return source{suite: suite, pkg: pkg, version: version}, nil
}

// cacheKey returns the directory name under which a kernel is kept. Package
// files are told apart by content, since a file may change under its name.
func (s source) cacheKey(spec string) (string, error) {
	if len(s.debs) == 0 {
		return strings.NewReplacer("/", "_", "=", "_", ":", "_").Replace(spec), nil
	}
	sum := sha256.New()
	for _, deb := range s.debs {
		f, err := os.Open(deb)
		if err != nil {
			return "", fmt.Errorf("reading a kernel package: %w", err)
		}
		_, err = io.Copy(sum, f)
		f.Close()
		if err != nil {
			return "", fmt.Errorf("reading a kernel package: %w", err)
		}
	}
	return "deb-" + hex.EncodeToString(sum.Sum(nil))[:16], nil
}

// locate fills in the paths and the release of a kernel whose packages are
// unpacked in root.
func (k *Kernel) locate(root string) error {
	var images []string
	// The second and third are where packages with the modules apart have it.
	for _, pattern := range []string{"boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz", "lib/modules/*/vmlinuz"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return fmt.Errorf("looking for a boot image: %w", err)
		}
		images = append(images, found...)
	}
	if len(images) != 1 {
		return fmt.Errorf("looking for a boot image: %d found in the packages %s", len(images), strings.Join(k.Packages, ", "))
	}
	k.Image = images[0]
	if _, release, ok := strings.Cut(filepath.Base(k.Image), "-"); ok {
		k.Release = release
	} else {
		k.Release = filepath.Base(filepath.Dir(k.Image))
	}
	k.ModuleDir = findModules(root, k.Release)
	if k.ModuleDir == "" {
		return fmt.Errorf("looking for the modules of %s: none in the packages %s", k.Release, strings.Join(k.Packages, ", "))
	}
	return nil
}

// locateImage returns the kernel of a boot image that is not from a package.
func locateImage(name, image string) (Kernel, error) {
	image, err := filepath.Abs(image)
	if err != nil {
		return Kernel{}, fmt.Errorf("looking for a boot image: %w", err)
	}
	if _, err := os.Stat(image); err != nil {
		return Kernel{}, fmt.Errorf("looking for a boot image: %w", err)
	}
	_, release, _ := strings.Cut(filepath.Base(image), "-")
	k := Kernel{Name: name, Release: release, Image: image}
	if release != "" {
		k.ModuleDir = findModules(filepath.Dir(filepath.Dir(image)), release)
	}
	return k, nil
}

func findModules(root, release string) string {
	for _, lib := range []string{"lib", "usr/lib"} {
		dir := filepath.Join(root, lib, "modules", release)
		if _, err := os.Stat(filepath.Join(dir, "modules.builtin")); err == nil {
			return dir
		} else if !errors.Is(err, os.ErrNotExist) {
			return ""
		}
	}
	return ""
}
