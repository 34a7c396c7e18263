"""The chart in a real cluster, under load: installs it as its README says, changes and breaks it, and compares every acknowledged
event with Kafka. Called by .ci/cluster, in namespaces of its own.

    test.py DIRECTORY KUBERNETES BRIDGE JARS CGROUP [--all | STEP…]

Always: installation, `helm test`, a roll-out. Then, unless steps are named: forced deletion and SIGKILL, a drained node, scaling out
and in with a backlog, and with --all what scenarios.py has. At last, `helm rollback`. No event that was answered with 200 may be
missing from the topics or be there twice. Wherever one replica always serves, no webhook may be refused.
"""

import argparse
import base64
import collections
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import images
import scenarios
from cluster import NODES, Authority, Cluster, Failed, run, until
from kafka import PLAIN, SECURED, USER, Kafka
from load import keys

ROOT = Path(__file__).parents[2]
CHART = "deploy/helm/cmc-bridge"
TOOLS = ROOT / "target/ci-tools/bin"
NAMESPACE = "mail"
POD_SECURITY = "pod-security.kubernetes.io/enforce=restricted"
# As the chart's README has it.
CREDENTIAL = "cmc:change-me"
KAFKA_PASSWORD = "kafka-password"
# persistence.size, where nobody sets it.
VOLUME = "20Gi"
ROLL_OUT = 180


class Load:
    """A load.py in a node's network, and what it wrote."""

    def __init__(self, test, name, node, rate, url, *options):
        self.name = name
        self.file = test.directory / f"load-{name}"
        self.error = test.cluster.logs / f"load-{name}"
        self.file.touch()
        self.credential(CREDENTIAL)
        with open(self.error, "wb") as log:
            self.process = subprocess.Popen(
                [
                    *test.cluster.network_of(node),
                    sys.executable,
                    Path(__file__).parent / "load.py",
                    name,
                    url,
                    self.file,
                    "--rate",
                    str(rate),
                    *options,
                ],
                stderr=log,
            )

    def credential(self, text):
        new = Path(f"{self.file}.new")
        new.write_text(text)
        new.rename(f"{self.file}.credential")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        if self.process.wait(60) != 0:
            raise Failed(f"the load {self.name} failed: {self.error.read_text()}")

    def webhooks(self):
        """(keys, status, start, milliseconds) of each."""
        for line in self.file.read_text().splitlines():
            _, number, events, status, start, milliseconds = line.split("\t")
            yield keys(self.name, int(number), int(events)), status, float(start), float(milliseconds)


class Test:
    def __init__(self, directory, cluster, kafka, authority):
        self.directory = directory
        self.cluster = cluster
        self.kafka = kafka
        self.authority = authority
        self.begin = time.monotonic()
        self.loads = []
        self.past = []
        # Keys of other events that must be in Kafka once.
        self.more = set()
        # (what, begin, end, whether a webhook may be refused)
        self.windows = []

    @contextlib.contextmanager
    def step(self, what, may_refuse=None):
        """Says what happens and how long it took. With `may_refuse`, the webhooks of this time are looked at in the end."""
        print(f"-- {what}", flush=True)
        begin, since = time.time(), time.monotonic()
        yield
        if may_refuse is not None:
            self.windows.append((what, begin, time.time(), may_refuse))
        print(f"   {time.monotonic() - since:.0f} s", flush=True)

    def readme(self, first, replaced=()):
        """Runs the commands of a block of the chart's README, from the one that begins with `first` to the block's end."""
        blocks = re.findall(r"```console\n(.*?)```", Path(ROOT / CHART / "README.md").read_text(), re.S)
        commands = next((block[block.index(first) :] for block in blocks if first in block), None)
        if commands is None:
            raise Failed(f"{CHART}/README.md has no command that begins with: {first}")
        commands = re.sub(r"^ *\$ ", "", commands, flags=re.M)
        for old, new in replaced:
            if old not in commands:
                raise Failed(f"the commands after {first} in {CHART}/README.md lack: {old}")
            commands = commands.replace(old, new)
        homes = {f"HELM_{kind}_HOME": str(self.directory / "helm") for kind in ("CACHE", "CONFIG", "DATA")}
        path = {"PATH": f"{TOOLS}:{os.environ['PATH']}", "KUBECONFIG": f"{self.cluster.pki}/admin.kubeconfig"}
        return run("bash", "-euc", commands, cwd=ROOT, env=os.environ | homes | path)

    def kubectl(self, *words, **options):
        return self.cluster.kubectl("--namespace", NAMESPACE, *words, **options)

    def get(self, *words):
        return self.cluster.get("--namespace", NAMESPACE, *words)

    def upgrade(self, *values, wait=True, user=None, **trees):
        """Sets values, each `path=value` or a tree of JSON, as this user of Kubernetes."""
        words = [word for value in values for word in ("--set", value)]
        words += [word for name, tree in trees.items() for word in ("--set-json", f"{name}={json.dumps(tree)}")]
        words += ["--wait", f"--timeout={ROLL_OUT}s"] if wait else []
        words += ["--kube-as-user", user] if user else []
        self.cluster.helm("--namespace", NAMESPACE, "upgrade", "cmc-bridge", ROOT / CHART, "--reuse-values", *words)

    def helm_test(self):
        self.said(self.cluster.helm("--namespace", NAMESPACE, "test", "cmc-bridge", "--logs", "--timeout", "120s"))

    def said(self, log):
        """Looks for the words of a successful `helm test` with a sample webhook."""
        for words in ("ready to serve", "answer 200"):
            if words not in log:
                raise Failed(f"helm test does not say {words!r}: {log}")

    def serving(self, replicas):
        """Waits until so many pods are there, all of them ready."""

        def ready():
            pods = self.bridge_pods()
            states = [
                condition["status"]
                for pod in pods
                for condition in pod["status"].get("conditions", [])
                if condition["type"] == "Ready"
            ]
            return len(pods) == replicas and states == ["True"] * replicas

        until(f"{replicas} pods are ready", ROLL_OUT, ready)

    def bridge_pods(self):
        return self.get("pods", "--selector", "app.kubernetes.io/component=bridge")["items"]

    def secret(self, name, **entries):
        data = {entry.replace("_", "."): base64.b64encode(value.encode()).decode() for entry, value in entries.items()}
        self.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data})

    def start_load(self, scheme="http", rate=30, *options):
        service = self.get("service", "cmc-bridge")["spec"]
        url = f"{scheme}://{service['clusterIP']}:{service['ports'][0]['port']}/webhooks/events"
        for node, _, _ in NODES:
            self.loads.append(Load(self, f"{node}-{len(self.past)}", node, rate, url, *options))
            self.past.append(self.loads[-1])
        until(
            "webhooks are answered",
            60,
            lambda: all(any(status == "200" for _, status, _, _ in load.webhooks()) for load in self.loads),
        )

    def stop_load(self):
        while self.loads:
            self.loads.pop().stop()

    # The main scenario

    def install(self):
        for name, node in (("a", "n1"), ("b", "n2"), ("c", "n2")):
            self.cluster.volume(name, node, VOLUME)
        log = self.readme(
            "$ kubectl create namespace mail",
            [
                (
                    "kubectl create namespace mail",
                    f"kubectl create namespace {NAMESPACE}\nkubectl label namespace {NAMESPACE} {POD_SECURITY}",
                ),
                (r"'kafka-1:9092\,kafka-2:9092'", f"{PLAIN} --set tests.sendSample=true"),
            ],
        )
        self.said(log)
        # So that the commands below, which name no namespace, mean this one.
        self.cluster.kubectl("config", "set-context", "--current", f"--namespace={NAMESPACE}")
        self.serving(2)
        nodes = {pod["spec"]["nodeName"] for pod in self.bridge_pods()}
        if len(nodes) != 2:
            raise Failed(f"both replicas are on {nodes}")

    def secure_kafka(self):
        self.secret("kafka-password", password=KAFKA_PASSWORD)
        self.secret("kafka-ca", ca_crt=(self.authority.directory / "ca.crt").read_text())
        properties = (
            r"config.kafka.properties.security\.protocol=SASL_SSL",
            r"config.kafka.properties.sasl\.mechanism=SCRAM-SHA-512",
            rf"config.kafka.properties.sasl\.username={USER}",
        )
        self.upgrade(
            f"config.kafka.bootstrap_servers={SECURED}",
            *properties,
            "kafka.password.secretName=kafka-password",
            "kafka.ca.secretName=kafka-ca",
            f"image.tag={images.version()}-next",
        )
        self.serving(2)

    def kill(self):
        self.kubectl("delete", "pod", "cmc-bridge-1", "--force", "--grace-period=0")
        until("the deleted pod is there again", 60, lambda: self.get("pod", "cmc-bridge-1"))
        self.serving(2)
        pod = self.get("pod", "cmc-bridge-0")
        container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        self.cluster.on_node(
            pod["spec"]["nodeName"], "ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", container
        )
        until(
            "the killed container runs again",
            60,
            lambda: self.get("pod", "cmc-bridge-0")["status"]["containerStatuses"][0]["restartCount"] == 1,
        )
        self.serving(2)

    def drain_node(self):
        self.cluster.kubectl("drain", "n2", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
        refusal = ""
        try:
            self.cluster.kubectl("drain", "n1", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=8s")
        except Failed as refused:
            refusal = str(refused)
        if "disruption budget" not in refusal:
            raise Failed(f"the disruption budget did not keep the last replica: {refusal}")
        self.cluster.kubectl("uncordon", "n1", "n2")
        self.serving(2)

    def scale(self):
        self.upgrade("replicas=3")
        self.serving(3)
        # The replica that leaves must leave a backlog.
        with self.kafka.unreachable():
            time.sleep(2)
            # A name that is left over from an earlier scale-down does no harm.
            self.upgrade("replicas=2", "drain.claims={spool-cmc-bridge-9}", wait=False)
            until("the third replica is gone", 90, lambda: len(self.bridge_pods()) == 2)
        drain = ["--selector", "app.kubernetes.io/component=drain"]
        jobs = self.get("jobs", *drain)["items"]
        if len(jobs) != 1:
            raise Failed(f"helm's lookup found {len(jobs)} claims to drain, not one")
        self.kubectl("wait", "--for=condition=Complete", "--timeout=120s", "job", *drain)
        log = self.kubectl("logs", *drain, "--tail=-1")
        if not re.search(r"deliveries: [1-9]\d* events delivered, .* 0 left", log):
            raise Failed(f"the drain had nothing to deliver: {log}")
        self.readme("$ kubectl wait --for=condition=Complete --timeout=1h job", [("--timeout=1h", "--timeout=120s")])
        claims = [claim["metadata"]["name"] for claim in self.get("pvc")["items"]]
        if claims != ["spool-cmc-bridge-0", "spool-cmc-bridge-1"]:
            raise Failed(f"after the scale-down there are {claims}")
        self.serving(2)

    def roll_back(self):
        (template,) = self.get("statefulset", "cmc-bridge")["spec"]["volumeClaimTemplates"]
        if template["spec"]["resources"]["requests"]["storage"] != VOLUME:
            # The chart's README, "Larger volumes".
            self.kubectl("delete", "statefulset", "cmc-bridge", "--cascade=orphan")
        self.cluster.helm("--namespace", NAMESPACE, "rollback", "cmc-bridge", "1", "--wait", f"--timeout={ROLL_OUT}s")
        self.serving(2)
        if any(pod["spec"]["containers"][0]["image"] != f"{images.BRIDGE}:{images.version()}" for pod in self.bridge_pods()):
            raise Failed("after the rollback the image is another than at first")

    def steps(self):
        """Name, what happens, whether a webhook may be refused, and the function of each."""
        return [
            ("kill", "forced deletion of a pod, SIGKILL of a process", True, self.kill),
            ("drain-node", "drain of a node; its disruption budget", False, self.drain_node),
            ("scale", "2, 3, 2 replicas, while Kafka can't be reached; drain of what the third left", False, self.scale),
        ]

    def run(self, everything, names):
        more = scenarios.steps(self)
        chosen = (
            [step for step in self.steps() + more if step[0] in names] if names else self.steps() + (more if everything else [])
        )
        if unknown := set(names) - {step[0] for step in chosen}:
            raise Failed(f"there is no step {', '.join(unknown)}, but {', '.join(step[0] for step in self.steps() + more)}")
        with self.step("install and helm test, as the chart's README says, with a sample webhook"):
            self.install()
        self.start_load()
        with self.step("roll-out to another version, and from plain Kafka to SASL_SSL", may_refuse=False):
            self.secure_kafka()
        for _, what, may_refuse, function in chosen:
            with self.step(what, may_refuse):
                function()
        with self.step("helm rollback to the first revision", may_refuse=False):
            self.roll_back()
        self.stop_load()
        with self.step("every acknowledged event against the topics"):
            self.compare()

    def compare(self):
        """Every acknowledged event is in Kafka once; no webhook was refused where none may be."""
        webhooks = [webhook for load in self.past for webhook in load.webhooks()]
        acknowledged = {key for keys_of, status, _, _ in webhooks if status == "200" for key in keys_of} | self.more
        found = collections.Counter()

        def delivered():
            nonlocal found
            found = self.kafka.keys()
            return acknowledged <= set(found)

        with contextlib.suppress(Failed):
            until("all are there", 60, delivered)
        missing = acknowledged - set(found)
        sent = {key for keys_of, _, _, _ in webhooks for key in keys_of} | self.more
        twice = [key for key in sent if found[key] > 1]
        dead = sum(self.kafka.keys("cmc.dead-letters").values())
        statuses = dict(collections.Counter(status for _, status, _, _ in webhooks))
        print(f"   {len(webhooks)} webhooks, answers {statuses}")
        print(f"   acknowledged events {len(acknowledged)}, lost {len(missing)}, twice {len(twice)}, dead letters {dead}")
        wrong = bool(missing or twice or dead) or len(acknowledged) < 1000
        for what, begin, end, may_refuse in self.windows:
            within = [(status, milliseconds) for _, status, start, milliseconds in webhooks if begin <= start < end]
            refused = collections.Counter(status for status, _ in within if status != "200")
            slowest = max((milliseconds for _, milliseconds in within), default=0)
            print(f"   {what}: {len(within)} webhooks, refused {dict(refused) or 0}, slowest {slowest:.0f} ms")
            wrong |= not within or (bool(refused) and not may_refuse)
        if wrong:
            raise Failed(f"lost {sorted(missing)[:5]}, twice {twice[:5]}, dead letters {dead}, or refused, as said above")

    def explain(self):
        """What a reader of a failed run wants to see."""
        for words in (
            ["get", "pods,pvc,jobs", "--output=wide"],
            ["get", "events", "--sort-by=.lastTimestamp"],
            ["logs", "--selector=app.kubernetes.io/name=cmc-bridge", "--prefix", "--tail=25"],
        ):
            with contextlib.suppress(Failed):
                print("\n".join(self.kubectl(*words).splitlines()[-60:]), flush=True)
        print(f"more in {self.cluster.logs} and {self.directory}/nodes/*/var/log", flush=True)


def main():
    parser = argparse.ArgumentParser()
    for name in ("directory", "kubernetes", "bridge", "jars"):
        parser.add_argument(name, type=Path)
    parser.add_argument("cgroup")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("steps", nargs="*")
    arguments = parser.parse_args()
    directory = arguments.directory
    (directory / "images").mkdir(parents=True)
    images.make(arguments.bridge, directory / "images")
    authority = Authority(directory / "authority")
    begin = time.monotonic()
    with (
        Cluster(directory, arguments.kubernetes, TOOLS, arguments.cgroup) as cluster,
        Kafka(directory / "kafka", arguments.jars, authority, KAFKA_PASSWORD) as kafka,
    ):
        kafka.create_topics()
        print(cluster.kubectl("get", "nodes", "--output=wide"), end="")
        print(f"the cluster and Kafka are there after {time.monotonic() - begin:.0f} s", flush=True)
        test = Test(directory, cluster, kafka, authority)
        try:
            test.run(arguments.all, arguments.steps)
        except (Failed, OSError, KeyError) as failed:
            print(f"FAILED: {failed!r}" if not isinstance(failed, Failed) else f"FAILED: {failed}", flush=True)
            test.explain()
            sys.exit(1)
    print(f"the cluster's test holds, in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
