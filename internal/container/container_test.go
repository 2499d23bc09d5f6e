package container

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

const (
	id  = "3f1c0a9b2d4e5f60718293a4b5c6d7e8f9010203040506070809a0b0c0d0e0f1"
	id2 = "aa1c0a9b2d4e5f60718293a4b5c6d7e8f9010203040506070809a0b0c0d0e0f1"
	uid = "1b2c3d4e-5f60-7182-93a4-b5c6d7e8f901"
)

func TestParse(t *testing.T) {
	under := strings.ReplaceAll(uid, "-", "_")
	static := "0123456789abcdef0123456789abcdef"
	for _, c := range []struct {
		name, path string
		want       Container
	}{
		{"docker, cgroupfs", "/docker/" + id, Container{"docker", id, ""}},
		{"docker, systemd", "/system.slice/docker-" + id + ".scope", Container{"docker", id, ""}},
		{"docker, rootless", "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" + id + ".scope", Container{"docker", id, ""}},
		{"docker, a slice of its own", "/web.slice/docker-" + id + ".scope", Container{"docker", id, ""}},
		{"docker, a parent of its own", "/web/" + id, Container{"", id, ""}},
		{"docker, a service of systemd in it", "/docker/" + id + "/system.slice/nginx.service", Container{"docker", id, ""}},
		{"docker, systemd driver, a service in it", "/system.slice/docker-" + id + ".scope/system.slice/ssh.service", Container{"docker", id, ""}},
		{"docker in docker", "/docker/" + id + "/docker/" + id2, Container{"docker", id2, ""}},
		{"from inside, by a cgroup namespace", "/../../system.slice/docker-" + id + ".scope", Container{"docker", id, ""}},
		{"kubernetes, cgroupfs", "/kubepods/besteffort/pod" + uid + "/" + id, Container{"", id, uid}},
		{"kubernetes, guaranteed", "/kubepods/pod" + uid + "/" + id, Container{"", id, uid}},
		{"kubernetes, containerd, systemd", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-" + id + ".scope", Container{"containerd", id, uid}},
		{"kubernetes, cri-o, systemd", "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + under + ".slice/crio-" + id + ".scope", Container{"cri-o", id, uid}},
		{"kubernetes, cri-o, a cgroup in it", "/kubepods.slice/kubepods-pod" + under + ".slice/crio-" + id + ".scope/container", Container{"cri-o", id, uid}},
		{"kubernetes, cri-o, cgroupfs", "/kubepods/burstable/pod" + uid + "/crio-" + id, Container{"cri-o", id, uid}},
		{"kubernetes, docker, systemd", "/kubepods.slice/kubepods-pod" + under + ".slice/docker-" + id + ".scope", Container{"docker", id, uid}},
		{"kubernetes, a pod from a file", "/kubepods/burstable/pod" + static + "/" + id, Container{"", id, static}},
		{"kubernetes, drivers at odds", "/system.slice/containerd.service/kubepods-besteffort-pod" + under + ".slice:cri-containerd:" + id, Container{"containerd", id, uid}},
		{"kind: kubernetes in docker", "/docker/" + id + "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod" + under + ".slice/cri-containerd-" + id2 + ".scope", Container{"containerd", id2, uid}},
		{"podman", "/machine.slice/libpod-" + id + ".scope", Container{"podman", id, ""}},
		{"podman, the payload", "/machine.slice/libpod-" + id + ".scope/container", Container{"podman", id, ""}},
		{"podman, rootless", "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope/container", Container{"podman", id, ""}},
		{"podman, a pod", "/machine.slice/machine-libpod_pod_" + id2 + ".slice/libpod-" + id + ".scope", Container{"podman", id, ""}},
		{"podman, cgroupfs", "/libpod_parent/libpod-" + id, Container{"podman", id, ""}},
		{"podman, cgroups=split", "/system.slice/web.service/libpod-payload-" + id, Container{"podman", id, ""}},
		{"nerdctl", "/system.slice/nerdctl-" + id + ".scope", Container{"nerdctl", id, ""}},
		{"containerd's namespace", "/default/" + id, Container{"", id, ""}},
		{"ECS", "/ecs/0f1e2d3c4b5a69788796a5b4c3d2e1f0/" + id, Container{"", id, ""}},
		{"lxc, version 1", "/lxc/web1", Container{"lxc", "web1", ""}},
		{"lxc", "/lxc.payload.web1/system.slice/nginx.service", Container{"lxc", "web1", ""}},
		{"lxc 4", "/lxc.payload/web1", Container{"lxc", "web1", ""}},
		{"docker in lxc", "/lxc.payload.web1/system.slice/docker-" + id + ".scope", Container{"docker", id, ""}},
		{"nspawn, the service", "/machine.slice/systemd-nspawn@build.service/payload/system.slice/cron.service", Container{"systemd-nspawn", "build", ""}},
		{"nspawn, by hand", `/machine.slice/machine-debian\x2dsid.scope`, Container{"systemd-nspawn", "debian-sid", ""}},

		{"a service", "/system.slice/nginx.service", Container{}},
		{"a login", "/user.slice/user-1000.slice/session-2.scope", Container{}},
		{"the root", "/", Container{}},
		{"nothing", "", Container{}},
		{"docker itself", "/system.slice/docker.service", Container{}},
		{"containerd itself", "/system.slice/containerd.service", Container{}},
		{"cri-o's monitor", "/system.slice/crio-conmon-" + id + ".scope", Container{}},
		{"podman's monitor", "/machine.slice/libpod-conmon-" + id + ".scope", Container{}},
		{"lxc's monitor", "/lxc.monitor.web1", Container{}},
		{"a pod without a container", "/kubepods/besteffort/pod" + uid, Container{}},
		{"a podman pod", "/machine.slice/machine-libpod_pod_" + id2 + ".slice", Container{}},
		{"a virtual machine", `/machine.slice/machine-qemu\x2d1\x2dvm.scope`, Container{}},
		{"too short for an ID", "/docker/3f1c0a9b2d4e", Container{}},
		{"not hex", "/docker/" + strings.Repeat("g", 64), Container{}},
		{"capital letters", "/docker/" + strings.ToUpper(id), Container{}},
		{"a flatpak", "/user.slice/user-1000.slice/user@1000.service/app.slice/app-flatpak-org.example-1.scope", Container{}},
		{"not a pod", "/podcasts/x", Container{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := Parse(c.path)
			assert.Equal(t, c.want, got)
			assert.Equal(t, c.want.ID != "", ok)
		})
	}
}

func TestString(t *testing.T) {
	assert.Equal(t, "docker 3f1c0a9b2d4e", Container{Runtime: "docker", ID: id}.String())
	assert.Equal(t, "container 3f1c0a9b2d4e", Container{ID: id}.String())
	assert.Equal(t, "lxc a-name-longer-than-12", Container{Runtime: "lxc", ID: "a-name-longer-than-12"}.String())
}

func FuzzParse(f *testing.F) {
	f.Add("/docker/" + id)
	f.Add(`/machine.slice/machine-\x2`)
	f.Add("/kubepods-pod.slice:a:" + id)
	f.Fuzz(func(t *testing.T, path string) {
		c, ok := Parse(path)
		if ok != (c.ID != "") {
			t.Errorf("%q: %+v %v", path, c, ok)
		}
		_ = c.String()
	})
}
