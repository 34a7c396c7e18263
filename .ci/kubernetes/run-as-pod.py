"""Starts the built program as Kubernetes would, from rendered manifests, in a root with the image's contents.

    run-as-pod.py BINARY TESTED.yaml FULL.yaml PLAIN.yaml

The root has everything in gcr.io/distroless/cc-debian12 that a program may need, and is mounted read-only. The manifests' user,
groups, arguments, environment, mounts and ports apply. A network namespace keeps the fixed ports from clashing with others;
it has no Kafka. The program is process 1 of its own process namespace, as in a container.

TESTED.yaml goes through a whole life: check, serve, webhooks, SIGKILL, serve again, SIGTERM. FULL.yaml and PLAIN.yaml only have
their configuration checked. As root everything is as in a pod; otherwise a user namespace replaces root, and the user is not the
manifest's.
"""

import base64
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml

DOCKERFILE = Path("deploy/docker/Dockerfile").read_text()
ENTRYPOINT = json.loads(re.search(r"^ENTRYPOINT (.*)", DOCKERFILE, re.M)[1])
# The image's libraries, from glibc and libgcc. (It also has OpenSSL and libstdc++, which the program must not need.)
LIBRARIES = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2", "librt.so.1"}
# glibc of the image's Debian.
GLIBC = {"12": (2, 36), "13": (2, 41)}[re.search(r"distroless/cc-debian(\d+)", DOCKERFILE)[1]]
CREDENTIAL = "cmc:wort=for:tests"
SAMPLE = Path("tests/samples/deliveries-succeeded.json").read_bytes()
# What Kubernetes would add for a Service called cmc-bridge if service links were on.
LINKS = {
    "CMC_BRIDGE_SERVICE_HOST": "10.0.0.1",
    "CMC_BRIDGE_SERVICE_PORT": "8080",
    "CMC_BRIDGE_SERVICE_PORT_WEBHOOKS": "8080",
    "CMC_BRIDGE_PORT": "tcp://10.0.0.1:8080",
    "CMC_BRIDGE_PORT_8080_TCP": "tcp://10.0.0.1:8080",
    "CMC_BRIDGE_PORT_8080_TCP_PROTO": "tcp",
    "CMC_BRIDGE_PORT_8080_TCP_PORT": "8080",
    "CMC_BRIDGE_PORT_8080_TCP_ADDR": "10.0.0.1",
    "KUBERNETES_SERVICE_HOST": "10.0.0.2",
}
ROOT = os.environ.get("RUN_AS_POD_ROOT") == "1"


def enter_namespaces():
    """Runs this script again in its own mount and network namespaces."""
    if "RUN_AS_POD_ROOT" not in os.environ:
        root = os.geteuid() == 0
        os.environ["RUN_AS_POD_ROOT"] = "1" if root else "0"
        user = [] if root else ["--user", "--map-root-user"]
        os.execvp("unshare", ["unshare", *user, "--mount", "--net", sys.executable, *sys.argv])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh", b"lo", 0x1 | 0x40)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, request)  # SIOCSIFFLAGS


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True)


def own(path, uid, gid):
    if ROOT:
        os.chown(path, uid, gid)


def check_binary(binary):
    """Checks that the program needs nothing that the image does not have."""
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", binary)))
    if extra := {name for name in needed - LIBRARIES if not name.startswith("ld-linux")}:
        sys.exit(f"{binary} needs {extra}, which the image does not have")
    versions = {tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_([\d.]+)", output("objdump", "-T", binary))}
    if max(versions) > GLIBC:
        sys.exit(f"{binary} needs glibc {max(versions)}, the image has {GLIBC}")
    print(f"{binary} needs {', '.join(sorted(needed))} and glibc {'.'.join(map(str, max(versions)))}")


def image_root(root, binary):
    """The image's contents, and what a container runtime adds: /proc, /dev, /etc/hosts."""
    for directory in ("etc/ssl/certs", "proc", "dev", "home/nonroot", "tmp", "var/lib/cmc-bridge", "run"):
        (root / directory).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for library in re.findall(r"(/\S+) \(0x", output("ldd", binary)):
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    program = root / ENTRYPOINT[0].lstrip("/")
    program.parent.mkdir(parents=True)
    shutil.copy(binary, program)
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n")
    (root / "etc/group").write_text("root:x:0:\nnonroot:x:65532:\n")
    (root / "etc/nsswitch.conf").write_text("hosts: files dns\n")
    (root / "etc/resolv.conf").write_text("nameserver 127.0.0.1\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost cmc-bridge.mail.svc\n")
    for device in ("null", "zero", "random", "urandom"):
        (root / "dev" / device).touch()


class Pod:
    """The pod of a workload, with its root and volumes below `place`."""

    made = []

    def __init__(self, documents, kind, name, secrets, image, place):
        self.workload = next(d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)
        self.spec = self.workload["spec"] if kind == "Pod" else self.workload["spec"]["template"]["spec"]
        (self.container,) = self.spec["containers"]
        self.security = self.spec["securityContext"]
        assert self.security["runAsNonRoot"] and self.container["securityContext"]["readOnlyRootFilesystem"]
        assert not self.container["securityContext"]["allowPrivilegeEscalation"]
        assert self.container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert self.spec["enableServiceLinks"] is False and self.spec["automountServiceAccountToken"] is False
        self.processes = []
        self.log = place / "serve.log"
        place.mkdir(exist_ok=True)
        self.root = place / f"root-{kind}-{name}"
        volumes = {volume["name"]: volume for volume in self.spec["volumes"]}
        for claim in self.workload["spec"].get("volumeClaimTemplates", []):
            volumes[claim["metadata"]["name"]] = {"persistentVolumeClaim": {}}
        self.root.mkdir()
        mount("--bind", self.root, self.root)
        Pod.made.append(self)
        shutil.copytree(image, self.root, dirs_exist_ok=True)
        for device in (self.root / "dev").iterdir():
            mount("--bind", f"/dev/{device.name}", device)
        for mounted in self.container["volumeMounts"]:
            volume = volumes[mounted["name"]]
            source = place / f"volume-{mounted['name']}-{kind}-{name}"
            self.fill(source, volume, documents, secrets)
            target = self.root / mounted["mountPath"].lstrip("/")
            target.mkdir(parents=True, exist_ok=True)
            mount("--bind", source, target)
            if mounted.get("readOnly"):
                mount("-o", "remount,ro,bind", target)
        mount("-o", "remount,ro,bind", self.root)

    def fill(self, source, volume, documents, secrets):
        """A volume as the kubelet makes it: files are links into a directory that is replaced as a whole."""
        group = self.security["fsGroup"]
        source.mkdir()
        own(source, 0, group)
        if "configMap" in volume:
            name = volume["configMap"]["name"]
            data = next(d for d in documents if d["kind"] == "ConfigMap" and d["metadata"]["name"] == name)["data"]
            mode = 0o644
        elif "secret" in volume:
            data = secrets[volume["secret"]["secretName"]]
            if items := volume["secret"].get("items"):
                data = {item["path"]: data[item["key"]] for item in items}
            mode = volume["secret"]["defaultMode"]
        else:
            # A fresh file system: its root belongs to root, and to the group by fsGroup.
            source.chmod(0o2775 if ROOT else 0o777)
            (source / "lost+found").mkdir(mode=0o700)
            return
        (source / "..2026_01_01").mkdir()
        (source / "..data").symlink_to("..2026_01_01")
        for key, text in data.items():
            path = source / "..2026_01_01" / key
            path.write_text(text)
            path.chmod(mode)
            own(path, 0, group)
            (source / key).symlink_to(f"..data/{key}")

    def start(self, args=None, **popen):
        user = f"{self.security['runAsUser']}:{self.security['runAsGroup']}"
        identity = [f"--userspec={user}", f"--groups={self.security['fsGroup']}"] if ROOT else []
        environment = {"PATH": "/usr/local/bin:/usr/bin", "HOSTNAME": "cmc-bridge-0", **LINKS}
        environment |= {entry["name"]: entry["value"] for entry in self.container.get("env", [])}
        command = [shutil.which("setpriv"), "--no-new-privs"]
        command += [shutil.which("unshare"), "--pid", "--fork", "--kill-child", f"--mount-proc={self.root}/proc"]
        command += [shutil.which("chroot"), *identity, str(self.root), *ENTRYPOINT, *(args or self.container["args"])]
        self.processes.append(subprocess.Popen(command, env=environment, **popen))
        return self.processes[-1]

    def serve(self):
        return self.start(stdout=self.log.open("a"), stderr=subprocess.STDOUT)

    def end(self):
        for process in self.processes:
            process.kill()  # and with it, by --kill-child, the program
            process.wait()
        subprocess.run(["umount", "--recursive", self.root], check=True)

    def run(self, args=None):
        """Runs to the end; returns the exit code and the output."""
        process = self.start(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        printed, _ = process.communicate(timeout=120)
        return process.returncode, printed

    def must_succeed(self, args=None):
        code, printed = self.run(args)
        if code != 0:
            sys.exit(f"{args or self.container['args']} ended with {code}:\n{printed}")
        return printed

    def url(self, port, path):
        port = next(p["containerPort"] for p in self.container["ports"] if p["name"] == port)
        return f"http://127.0.0.1:{port}{path}"

    def probe(self, name, process):
        """Waits until a probe succeeds, within its limits."""
        probe = self.container[name]
        patience = probe["periodSeconds"] * probe["failureThreshold"]
        url = self.url(probe["httpGet"]["port"], probe["httpGet"]["path"])
        begin = time.monotonic()
        while get(url) != 200:
            if process.poll() is not None or time.monotonic() - begin > patience:
                sys.exit(f"{name} {url}: no 200 in {patience} s; the process: {process.poll()}")
            time.sleep(0.05)


def get(url):
    """The status, or None while nobody listens."""
    try:
        return urllib.request.urlopen(url, timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def post(url, credential):
    request = urllib.request.Request(url, SAMPLE, {"Content-Type": "application/json"})
    if credential:
        request.add_header("Authorization", "Basic " + base64.b64encode(credential.encode()).decode())
    return get(request)


def metric(pod, line):
    text = urllib.request.urlopen(pod.url("admin", "/metrics"), timeout=5).read().decode()
    return sum(float(value) for value in re.findall(rf"^{re.escape(line)}[^ ]* ([\d.e+]+)$", text, re.M))


def program(process):
    """The process id of the program: the one child of `unshare`."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def must_be_confined(pod, process):
    status = dict(re.findall(r"^(\w+):\s*(.*)$", Path(f"/proc/{program(process)}/status").read_text(), re.M))
    assert status["NoNewPrivs"] == "1", status["NoNewPrivs"]
    if ROOT:
        assert status["Uid"].split() == [str(pod.security["runAsUser"])] * 4, status["Uid"]
        assert status["Groups"].split() == [str(pod.security["fsGroup"])], status["Groups"]
        assert int(status["CapEff"], 16) == 0 and int(status["CapPrm"], 16) == 0, status["CapEff"]
    mounts = Path(f"/proc/{program(process)}/mountinfo").read_text()
    root, = re.findall(r"^\S+ \S+ \S+ \S+ / (\S+)", mounts, re.M)
    assert "ro" in root.split(","), root


def life(pod, tests):
    pod.must_succeed(["--version"])
    pod.must_succeed(["check", *pod.container["args"][1:]])
    print("--version and check run; variables of service links do no harm")
    code, printed = tests["check"].run()
    if code != 69 or "FAIL" not in printed or "kafka" not in printed:
        sys.exit(f"the test pod does not say that Kafka is away; it ended with {code}:\n{printed}")

    process = pod.serve()
    pod.probe("startupProbe", process)
    pod.probe("livenessProbe", process)
    pod.probe("readinessProbe", process)
    must_be_confined(pod, process)
    webhooks = pod.url("webhooks", "/webhooks/events")
    assert post(webhooks, None) == 401
    assert post(webhooks, CREDENTIAL) == 200
    tests["send-sample"].must_succeed()
    accepted = metric(pod, "cmc_bridge_events_total{")
    assert accepted == 2, accepted
    print("ready; a webhook with the Secret's credential is answered 200 without Kafka, and so is the test pod's")

    os.kill(program(process), signal.SIGKILL)
    process.wait(timeout=30)
    process = pod.serve()
    pod.probe("startupProbe", process)
    pod.probe("readinessProbe", process)
    recovered = metric(pod, "cmc_bridge_recovered_events{")
    assert recovered == accepted, recovered
    print("killed and started again on the same volume: both events are there")

    patience = pod.spec["terminationGracePeriodSeconds"]
    begin = time.monotonic()
    os.kill(program(process), signal.SIGTERM)
    ready = pod.url("admin", pod.container["readinessProbe"]["httpGet"]["path"])
    while get(ready) == 200:
        assert time.monotonic() - begin < 4, "ready after SIGTERM"
        time.sleep(0.02)
    assert get(ready) == 503
    assert post(webhooks, CREDENTIAL) == 200, "it must serve on while load balancers learn of it"
    code = process.wait(timeout=patience)
    assert code == 0, code
    print(f"SIGTERM: not ready at once, served on, ended with 0 after {time.monotonic() - begin:.0f} s of {patience} s")


def certificate(place):
    """A certificate and its key, as text."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                    "-subj", "/CN=test", "-keyout", place / "key", "-out", place / "crt"], check=True, capture_output=True)
    return (place / "crt").read_text(), (place / "key").read_text()


def main():
    enter_namespaces()
    binary, *files = sys.argv[1:]
    tested, full, plain = (list(filter(None, yaml.safe_load_all(open(path)))) for path in files)
    check_binary(binary)
    if not ROOT:
        print("not root: the user of the manifests is not tried")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        try:
            run(place, binary, tested, full, plain)
        except BaseException:
            for log in place.glob("*/serve.log"):
                print(log.read_text(), file=sys.stderr)
            raise
        finally:
            for pod in Pod.made:
                pod.end()


def run(place, binary, tested, full, plain):
    image = place / "image"
    image_root(image, binary)
    basic = f"# the current one\n{CREDENTIAL}\n"
    secrets = {"cmc-bridge-credentials": {"basic": basic}}
    pod = Pod(tested, "StatefulSet", "cmc-bridge", secrets, image, place / "tested")
    tests = {
        test: Pod(tested, "Pod", f"cmc-bridge-test-{test}", secrets, image, place / "tested")
        for test in ("check", "send-sample")
    }
    life(pod, tests)

    Pod(plain, "StatefulSet", "cmc-bridge", secrets, image, place / "plain").must_succeed(
        ["check", *pod.container["args"][1:]])
    crt, key = certificate(place)
    secrets |= {
        "cmc-bridge-credentials": {"basic": basic, "tokens": "token\n", "api-keys": "key\n"},
        "kafka-user": {"password": "00123", "sasl.jaas.config": "x"},
        "kafka-ca": {"ca.crt": crt},
        "kafka-oauth": {"secret": "00123"},
        "login-ca": {"ca.crt": crt},
        "kafka-client": {"user.crt": crt, "user.key": key},
        "webhooks-tls": {"tls.crt": crt, "tls.key": key},
    }
    everything = Pod(full, "StatefulSet", "cmc-bridge", secrets, image, place / "full")
    everything.must_succeed(["check", *everything.container["args"][1:]])
    # A build without `spool drain` has no use for the chart's Job.
    if re.search(r"^  spool ", pod.must_succeed(["help"]), re.M):
        job = next(d["metadata"]["name"] for d in full if d["kind"] == "Job")
        drain = Pod(full, "Job", job, secrets, image, place / "full")
        drain.must_succeed([*drain.container["args"], "--help"])
    print("the configurations of the full values and of deploy/kubernetes are accepted")


main()
