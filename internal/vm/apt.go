package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// Variables that say where Debian's packages come from, for machines whose apt
// knows no Debian mirror (Ubuntu) or no Debian keys.
const (
	mirrorVariable  = "TCPTRACE_DEBIAN_MIRROR"
	keyringVariable = "TCPTRACE_DEBIAN_KEYRING"
)

// apt is an apt of its own: its sources, lists and cache are in one directory,
// and the system's are neither read nor changed. The system's settings (proxy,
// credentials) hold.
type apt struct {
	dir   string
	suite string
}

// newApt sets up an apt that knows the main component of one suite.
func newApt(dir, suite, mirror, keyring string) (*apt, error) {
	for _, d := range []string{"lists/partial", "cache/archives/partial", "debs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if strings.HasSuffix(suite, "-security") {
		mirror = strings.TrimSuffix(mirror, "/debian") + "/debian-security"
	}
	// target=Packages leaves out translations, contents and icons.
	line := fmt.Sprintf("deb [arch=amd64 target=Packages signed-by=%s] %s %s main\n", keyring, mirror, suite)
	if err := os.WriteFile(filepath.Join(dir, "sources.list"), []byte(line), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "status"), nil, 0o644); err != nil {
		return nil, err
	}
	return &apt{dir, suite}, nil
}

func (a *apt) run(ctx context.Context, tool string, args ...string) ([]byte, error) {
	options := []string{
		"-qq",
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(a.dir, "sources.list"),
		"-o", "Dir::Etc::sourceparts=-",
		"-o", "Dir::Etc::preferences=-",
		"-o", "Dir::Etc::preferencesparts=-",
		"-o", "Dir::State::lists=" + filepath.Join(a.dir, "lists"),
		"-o", "Dir::State::status=" + filepath.Join(a.dir, "status"),
		"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "APT::Architecture=amd64",
		"-o", "APT::Architectures::=amd64",
		// The directories are the caller's; apt's own user may not reach them.
		"-o", "APT::Sandbox::User=",
		"-o", "APT::Update::Error-Mode=any",
		"-o", "Acquire::Retries=3",
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, tool, append(options, args...)...)
	cmd.Dir = filepath.Join(a.dir, "debs")
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s (suite %s): %w: %s", tool, strings.Join(args, " "), a.suite, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

// download fetches the packages that make up a kernel into dir and returns
// their files and their names with versions.
func download(ctx context.Context, src source, dir string) (debs, packages []string, err error) {
	mirror, err := debianMirror(ctx)
	if err != nil {
		return nil, nil, err
	}
	keyring, err := debianKeyring()
	if err != nil {
		return nil, nil, err
	}
	a, err := updatedApt(ctx, dir, src.suite, mirror, keyring)
	if err != nil {
		return nil, nil, hinted(err, "is the network up, and does the mirror (%s in the environment, else apt's own) have %s?", mirrorVariable, src.suite)
	}
	packages, err = a.kernelPackages(ctx, src.pkg, src.version)
	if err != nil {
		return nil, nil, err
	}
	if _, err := a.run(ctx, "apt-get", append([]string{"download"}, packages...)...); err != nil {
		return nil, nil, err
	}
	debs, err = a.downloaded()
	if err != nil {
		return nil, nil, err
	}
	if len(debs) != len(packages) {
		return nil, nil, fmt.Errorf("%d files were downloaded for the packages %s", len(debs), strings.Join(packages, ", "))
	}
	return debs, packages, nil
}

// keyringSuites are releases in the order in which each has the next one's keys
// in its own package of keys.
var keyringSuites = []string{"bullseye", "bookworm", "trixie"}

// keyringFile is where the package debian-archive-keyring has the keys.
const keyringFile = "usr/share/keyrings/debian-archive-keyring.gpg"

// unknownKey matches apt's complaint about a signature by a key that it does
// not have.
var unknownKey = regexp.MustCompile(`NO_PUBKEY|Missing key`)

// updatedApt returns an apt that has the suite's lists. A keyring that is too
// old for the suite (Ubuntu 22.04's is) is brought up to date by way of the
// releases that it does know, whose packages of keys their signatures cover.
func updatedApt(ctx context.Context, dir, suite, mirror, keyring string) (*apt, error) {
	update := func(dir, suite string) (*apt, error) {
		a, err := newApt(dir, suite, mirror, keyring)
		if err != nil {
			return nil, err
		}
		_, err = a.run(ctx, "apt-get", "update")
		return a, err
	}
	a, err := update(dir, suite)
	for _, older := range keyringSuites {
		if err == nil || !unknownKey.MatchString(err.Error()) {
			break
		}
		newer, keyErr := archiveKeyring(ctx, filepath.Join(dir, "keys-"+older), older, update)
		if keyErr != nil {
			// A release that this keyring does not know; the next may be one.
			continue
		}
		keyring = newer
		a, err = update(dir, suite)
	}
	return a, err
}

// archiveKeyring unpacks the suite's package of keys in dir and returns the
// keyring in it.
func archiveKeyring(ctx context.Context, dir, suite string, update func(dir, suite string) (*apt, error)) (string, error) {
	a, err := update(dir, suite)
	if err != nil {
		return "", err
	}
	if _, err := a.run(ctx, "apt-get", "download", "debian-archive-keyring"); err != nil {
		return "", err
	}
	debs, err := a.downloaded()
	if err != nil {
		return "", err
	}
	if len(debs) != 1 {
		return "", fmt.Errorf("%d files were downloaded for one package", len(debs))
	}
	if err := unpack(ctx, debs[0], filepath.Join(dir, "root")); err != nil {
		return "", err
	}
	keyring := filepath.Join(dir, "root", keyringFile)
	_, err = os.Stat(keyring)
	return keyring, err
}

// downloaded returns the package files that "apt-get download" left.
func (a *apt) downloaded() ([]string, error) {
	return filepath.Glob(filepath.Join(a.dir, "debs", "*.deb"))
}

// unpack unpacks a package file in root, without running its scripts.
func unpack(ctx context.Context, deb, root string) error {
	if out, err := exec.CommandContext(ctx, "dpkg", "-x", deb, root).CombinedOutput(); err != nil {
		return fmt.Errorf("unpacking %s: %w: %s", filepath.Base(deb), err, bytes.TrimSpace(out))
	}
	return nil
}

// kernelPart matches the packages that hold a kernel's files. Newer suites have
// the image, the modules and their lists apart, and meta packages for each.
var kernelPart = regexp.MustCompile(`^linux-(image|binary|modules|base)-`)

// kernelPackages returns the packages, as name=version, that pkg stands for and
// that hold files of a kernel, following its dependencies.
func (a *apt) kernelPackages(ctx context.Context, pkg, version string) ([]string, error) {
	var found []string
	seen := map[string]bool{}
	var visit func(name, version string) error
	visit = func(name, version string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		want := name
		if version != "" {
			want += "=" + version
		}
		text, err := a.run(ctx, "apt-cache", "show", "--no-all-versions", want)
		if err != nil {
			return err
		}
		p := parseStanza(string(text))
		if p["Version"] == "" {
			return fmt.Errorf("suite %s has no package %s", a.suite, want)
		}
		found = append(found, name+"="+p["Version"])
		for _, d := range parseDepends(p["Depends"] + "," + p["Pre-Depends"]) {
			if kernelPart.MatchString(d.name) {
				if err := visit(d.name, d.version); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := visit(pkg, version); err != nil {
		return nil, err
	}
	return found, nil
}

// parseStanza reads the first stanza of a Debian control file; continuation
// lines are left out.
func parseStanza(text string) map[string]string {
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if line == "" {
			break
		}
		if name, value, ok := strings.Cut(line, ":"); ok && line[0] != ' ' && line[0] != '\t' {
			fields[name] = strings.TrimSpace(value)
		}
	}
	return fields
}

type dependency struct {
	name    string
	version string // only of "(= VERSION)"
}

var dependsOn = regexp.MustCompile(`^([a-z0-9][a-z0-9+.-]*)(?::[a-z0-9]+)?(?:\s*\(([<>=]+)\s*([^)\s]+)\))?$`)

// parseDepends reads a list of dependencies; of alternatives, the first.
func parseDepends(list string) []dependency {
	var deps []dependency
	for item := range strings.SplitSeq(list, ",") {
		first, _, _ := strings.Cut(item, "|")
		m := dependsOn.FindStringSubmatch(strings.TrimSpace(first))
		if m == nil {
			continue
		}
		d := dependency{name: m[1]}
		if m[2] == "=" {
			d.version = m[3]
		}
		deps = append(deps, d)
	}
	return deps
}

// debianMirror returns the address of a Debian mirror: the one that the
// environment names, else the one that this machine's apt uses, else the default
// of debootstrap.
func debianMirror(ctx context.Context) (string, error) {
	if mirror := os.Getenv(mirrorVariable); mirror != "" {
		return strings.TrimRight(mirror, "/"), nil
	}
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets",
		"--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		return "", hinted(fmt.Errorf("asking apt for its mirror: %w", err),
			"kernels are fetched with apt; set %s where apt-get indextargets does not work", mirrorVariable)
	}
	if mirror := pickMirror(string(out)); mirror != "" {
		return mirror, nil
	}
	if script, err := os.ReadFile(debootstrap); err == nil {
		if m := defaultMirror.FindSubmatch(script); m != nil {
			return string(m[1]), nil
		}
	}
	return "", hinted(errors.New("this machine's apt knows no Debian mirror"),
		"install the package debootstrap, which names one, or set %s to the address of one, ending in /debian", mirrorVariable)
}

// debootstrap is the script that makes Debian systems, also on Ubuntu; it has
// the address that is used when none is given.
const debootstrap = "/usr/sbin/debootstrap"

var defaultMirror = regexp.MustCompile(`(?m)^DEF_MIRROR="([^"$]+)"$`)

// pickMirror chooses from lines of origin, label and address. Origin and label
// are known only once apt has fetched its lists.
func pickMirror(lines string) string {
	fallback := ""
	for line := range strings.Lines(lines) {
		fields := strings.SplitN(strings.TrimSpace(line), "|", 3)
		if len(fields) != 3 {
			continue
		}
		uri := strings.TrimRight(fields[2], "/")
		if uri == "" || strings.HasPrefix(uri, "cdrom:") {
			continue
		}
		if fields[0] == "Debian" && fields[1] == "Debian" {
			return uri
		}
		if fallback == "" && strings.HasSuffix(uri, "/debian") {
			fallback = uri
		}
	}
	return fallback
}

// debianKeyring returns the file with the keys that Debian signs its archive
// with.
func debianKeyring() (string, error) {
	candidates := []string{
		"/" + keyringFile,
		"/usr/share/keyrings/debian-archive-keyring.pgp",
	}
	if given := os.Getenv(keyringVariable); given != "" {
		candidates = []string{given}
	}
	for _, c := range candidates {
		if _, err := os.Stat(c); err == nil {
			return c, nil
		}
	}
	return "", hinted(fmt.Errorf("Debian's archive keys are not installed: no %s", strings.Join(candidates, " nor ")),
		"scripts/setup test installs the package debian-archive-keyring; %s names another file", keyringVariable)
}
