"""A Kubernetes of two nodes on this machine: `with Cluster(...) as cluster`.

The calling process must have network, process and mount namespaces of its own (.ci/cluster makes them): they are the network
outside the nodes, in which the control plane, Kafka and the tests run, and everything ends with them. Each node has namespaces of
its own again, so it can be lost like a machine: at once, with all its processes.
"""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).parent
CONTROL_PLANE = "10.99.0.254"
POD_NETWORK = "10.244.0.0/16"
SERVICE_NETWORK = "10.96.0.0/16"
CLUSTER_DNS = "10.96.0.10"
# Name, address, network of its pods.
NODES = [("n1", "10.99.0.1", "10.244.1.0/24"), ("n2", "10.99.0.2", "10.244.2.0/24")]

BASE = f"""
apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system}}
spec:
  clusterIP: {CLUSTER_DNS}
  ports: [{{name: dns, port: 53, protocol: UDP}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: kube-dns, namespace: kube-system, labels: {{kubernetes.io/service-name: kube-dns}}}}
addressType: IPv4
ports: [{{name: dns, port: 53, protocol: UDP}}]
endpoints: [{{addresses: [{CONTROL_PLANE}]}}]
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{name: local, annotations: {{storageclass.kubernetes.io/is-default-class: "true"}}}}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
allowVolumeExpansion: true
"""


class Failed(Exception):
    """What did not hold, in words for the reader of the log."""


def run(*command, **options):
    """Runs a command and returns its output. Its errors become part of the exception."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, **options)
    except subprocess.TimeoutExpired as expired:
        raise Failed(f"{' '.join(map(str, command))} does not end: {expired.stdout}") from None
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def until(what, seconds, condition):
    """Waits for a condition, and returns what made it true. The last Failed of the condition is part of the message."""
    deadline = time.monotonic() + seconds
    last = ""
    while True:
        try:
            if found := condition():
                return found
        except Failed as failed:
            last = f" ({failed})"
        if time.monotonic() > deadline:
            raise Failed(f"not within {seconds} s: {what}{last}")
        time.sleep(0.2)


def hierarchies():
    """Where a group of processes is made: each controller's hierarchy in version 1 of cgroups, the only one in version 2."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root]
    return [path for path in root.iterdir() if (path / "cgroup.procs").exists() and not (path / "cgroup.controllers").exists()]


class Authority:
    """Signs certificates in a directory."""

    def __init__(self, directory):
        self.directory = directory
        directory.mkdir(parents=True)
        self._openssl("req", "-x509", *self._key("ca"), "-subj", "/CN=test authority", "-days", "30", "-out", "ca.crt")

    def sign(self, name, subject, *alternatives):
        """Writes NAME.crt and NAME.key, for servers and clients."""
        extensions = "extendedKeyUsage=serverAuth,clientAuth\n"
        if alternatives:
            extensions += "subjectAltName=" + ",".join(alternatives) + "\n"
        (self.directory / f"{name}.ext").write_text(extensions)
        self._openssl("req", "-new", *self._key(name), "-subj", subject, "-out", f"{name}.csr")
        self._openssl(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "30",
            "-extfile",
            f"{name}.ext",
            "-out",
            f"{name}.crt",
        )

    def _key(self, name):
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key"]

    def _openssl(self, *words):
        run("openssl", *words, cwd=self.directory)


class Cluster:
    def __init__(self, directory, kubernetes, tools, cgroup):
        """`kubernetes` is the program that ./build makes, `tools` has kubectl and helm, `cgroup` names a group in each hierarchy."""
        self.directory = directory
        self.kubernetes = kubernetes
        self.tools = tools
        self.cgroup = cgroup
        self.pki = directory / "pki"
        self.logs = directory / "logs"
        self.logs.mkdir(parents=True)
        self.nodes = {}
        self.parts = []

    def __enter__(self):
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "nodes", "type", "bridge")
        run("ip", "address", "add", f"{CONTROL_PLANE}/24", "dev", "nodes")
        run("ip", "link", "set", "nodes", "up")
        self._sign()
        self._start_control_plane()
        for name, _, _ in NODES:
            self.start_node(name)
        self.apply(BASE)
        self.wait_for_nodes()
        return self

    def __exit__(self, *_):
        for process in [*self.nodes.values(), *self.parts]:
            process.kill()
        for process in [*self.nodes.values(), *self.parts]:
            process.wait()

    def _sign(self):
        authority = Authority(self.pki)
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        authority.sign(
            "apiserver",
            "/CN=kube-apiserver",
            f"IP:{CONTROL_PLANE}",
            "IP:127.0.0.1",
            "IP:10.96.0.1",
            *(f"DNS:{name}" for name in names),
        )
        authority.sign("admin", "/O=system:masters/CN=admin")
        for name, _, _ in NODES:
            authority.sign(name, f"/O=system:nodes/CN=system:node:{name}")
        for name in ["admin", *(name for name, _, _ in NODES)]:
            (self.pki / f"{name}.kubeconfig").write_text(
                json.dumps(
                    {
                        "apiVersion": "v1",
                        "kind": "Config",
                        "clusters": [
                            {
                                "name": "c",
                                "cluster": {
                                    "server": f"https://{CONTROL_PLANE}:6443",
                                    "certificate-authority": f"{self.pki}/ca.crt",
                                },
                            }
                        ],
                        "users": [
                            {
                                "name": "u",
                                "user": {"client-certificate": f"{self.pki}/{name}.crt", "client-key": f"{self.pki}/{name}.key"},
                            }
                        ],
                        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                        "current-context": "c",
                    }
                )
            )

    def _part(self, name, *flags):
        log = open(self.logs / name, "ab")
        self.parts.append(subprocess.Popen([self.kubernetes, name, *flags], stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def _start_control_plane(self):
        pki, admin = self.pki, f"{self.pki}/admin.kubeconfig"
        # What it stores is of no use after a crash of the machine.
        self._part("etcd", "--data-dir", f"{self.directory}/etcd", "--unsafe-no-fsync", "--log-level", "warn")
        self._part(
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={CONTROL_PLANE}",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--client-ca-file={pki}/ca.crt",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki}/ca.crt",
            f"--service-account-signing-key-file={pki}/ca.key",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--kubelet-client-certificate={pki}/admin.crt",
            f"--kubelet-client-key={pki}/admin.key",
            "--kubelet-preferred-address-types=InternalIP",
        )
        until("the API server is ready", 90, self._api_answers)
        clients = [f"--kubeconfig={admin}", "--leader-elect=false", "--bind-address=127.0.0.1"]
        self._part(
            "kube-controller-manager",
            *clients,
            f"--service-account-private-key-file={pki}/ca.key",
            f"--root-ca-file={pki}/ca.crt",
            "--use-service-account-credentials",
            "--node-monitor-grace-period=20s",
        )
        self._part("kube-scheduler", *clients)
        self._part("dns", "--kubeconfig", admin, "--listen", f"{CONTROL_PLANE}:53")

    def _api_answers(self):
        for part in self.parts:
            if part.poll() is not None:
                raise SystemExit(f"{part.args[1]} ended with {part.returncode}: see {self.logs}")
        return self.kubectl("get", "--raw", "/readyz") == "ok"

    def start_node(self, name):
        address, pods = next((address, pods) for node, address, pods in NODES if node == name)
        for hierarchy in hierarchies():
            for group in (hierarchy / self.cgroup, hierarchy / self.cgroup / name):
                group.mkdir(exist_ok=True)
                # In version 1 a new group of cpusets is empty; in version 2 the parent passes its controllers on.
                for setting in ("cpuset.cpus", "cpuset.mems"):
                    if (hierarchy / "cgroup.clone_children").exists() and (group / setting).exists():
                        (group / setting).write_text((hierarchy / setting).read_text())
                if (hierarchy / "cgroup.controllers").exists():
                    (group / "cgroup.subtree_control").write_text("+cpu +cpuset +io +memory +pids")
        environment = os.environ | {
            "KUBERNETES": str(self.kubernetes),
            "CLUSTER": str(self.directory),
            "CGROUP": self.cgroup,
            "CONTROL_PLANE": CONTROL_PLANE,
            "CLUSTER_DNS": CLUSTER_DNS,
            "POD_NETWORK": POD_NETWORK,
        }
        log = open(self.logs / f"node-{name}", "ab")
        # The network is made before the node's first command, so the node waits for a line.
        node = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "bash",
                "-c",
                'read -r && exec "$@"',
                "node",
                HERE / "node",
                name,
                address,
                pods,
            ],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            text=True,
        )
        self.nodes[name] = node
        until(f"node {name} has a first process", 10, lambda: self._first_process(name))
        run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", self._first_process(name))
        run("ip", "link", "set", f"to-{name}", "master", "nodes", "up")
        run("ip", "route", "replace", pods, "via", address)
        self.on_network(name, "ip", "link", "set", "lo", "up")
        self.on_network(name, "ip", "address", "add", f"{address}/24", "dev", "eth0")
        self.on_network(name, "ip", "link", "set", "eth0", "up")
        self.on_network(name, "ip", "route", "add", "default", "via", CONTROL_PLANE)
        for other, other_address, other_pods in NODES:
            if other != name:
                self.on_network(name, "ip", "route", "add", other_pods, "via", other_address)
        node.stdin.write("start\n")
        node.stdin.close()

    def lose_node(self, name):
        """All processes of the node end at once, and its network with them."""
        node = self.nodes.pop(name)
        os.kill(int(self._process_of(node)), signal.SIGKILL)
        node.wait()

    def wait_for_nodes(self):
        def ready():
            lines = self.kubectl("get", "nodes", "--no-headers").splitlines()
            return len(lines) == len(NODES) and all(line.split()[1] == "Ready" for line in lines)

        until("both nodes are Ready", 90, ready)

    def _process_of(self, node):
        return Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().strip()

    def _first_process(self, name):
        return self._process_of(self.nodes[name])

    def network_of(self, name):
        """What to put before a command that runs in a node's network."""
        return ["nsenter", f"--net=/proc/{self._first_process(name)}/ns/net", "--"]

    def on_network(self, name, *command):
        return run(*self.network_of(name), *command)

    def on_node(self, name, *command):
        return run("nsenter", f"--target={self._first_process(name)}", "--mount", "--pid", "--net", "--", *command)

    def kubectl(self, *words, **options):
        return run(self.tools / "kubectl", "--kubeconfig", self.pki / "admin.kubeconfig", *words, **options)

    def get(self, *words):
        return json.loads(self.kubectl("get", *words, "--output", "json"))

    def apply(self, manifest):
        """Makes or changes an object, or those of a text in YAML."""
        self.kubectl("apply", "--filename", "-", input=manifest if isinstance(manifest, str) else json.dumps(manifest))

    def helm(self, *words):
        homes = {f"HELM_{kind}_HOME": str(self.directory / "helm") for kind in ("CACHE", "CONFIG", "DATA")}
        return run(self.tools / "helm", "--kubeconfig", self.pki / "admin.kubeconfig", *words, env=os.environ | homes)

    def volume(self, name, node, size):
        """A volume on a node's disk, for one claim."""
        path = self.directory / "volumes" / name
        path.mkdir(parents=True)
        at = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": name},
                "spec": {
                    "capacity": {"storage": size},
                    "accessModes": ["ReadWriteOnce"],
                    "persistentVolumeReclaimPolicy": "Retain",
                    "storageClassName": "local",
                    "local": {"path": str(path)},
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [at]}]}},
                },
            }
        )
