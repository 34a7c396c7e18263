"""What .ci/cluster --all tries besides the main scenario, between its scale-down and its rollback, under the same load."""

import datetime
import json
import re
import time

import images
from cluster import CONTROL_PLANE, Failed, until
from sender import KEY, Sender
from sender import USER as READER

MIB = 1 << 20
NODES_ADDRESSES = "10.99.0.0/24"
# A program for a node: posts a webhook of one event to each of the addresses, and prints the answers.
POST = """
import base64, http.client, sys
credential, body, *addresses = sys.argv[1:]
for address in addresses:
    connection = http.client.HTTPConnection(address, 8080, timeout=10)
    basic = base64.b64encode(credential.encode()).decode()
    connection.request("POST", "/webhooks/events", body.encode(), {"Content-Type": "application/json", "Authorization": "Basic " + basic})
    print(connection.getresponse().status)
"""


def webhook(kind, elements):
    return json.dumps({"event_type": kind, "server_composition": "pro", "event": {kind: elements}})


def delivery(key, created):
    return {
        "created": created,
        "returnPath": "b@example.jp",
        "from": "f@example.jp",
        "to": "t@example.net",
        "messageId": key,
        "reason": "",
        "senderIp": "",
        "sourceIp": "192.0.2.1",
        "status": "succeeded",
        "subject": "十月",
        "apiData": "",
    }


class Scenarios:
    def __init__(self, test):
        self.test = test
        self.cluster = test.cluster
        self.probes = 0

    def addresses(self):
        return [pod["status"]["podIP"] for pod in self.test.bridge_pods()]

    def post(self, credential, body, *addresses):
        return self.cluster.on_network("n1", "python3", "-c", POST, credential, body, *addresses).split()

    def answers(self, credential):
        """How each pod answers a webhook with this credential."""
        self.probes += 1
        return self.post(
            credential,
            webhook("deliveries", [delivery(f"<probe.{self.probes}@example.jp>", "2026-10-01 09:15:05")]),
            *self.addresses(),
        )

    def credentials(self):
        """The Secret has the old and the new credential, the sender changes, the old one goes. Nothing is restarted."""
        test, old, new = self.test, "cmc:change-me", "cmc:changed"
        pods = [pod["metadata"]["uid"] for pod in test.bridge_pods()]
        test.secret("cmc-bridge-credentials", basic=f"{old}\n{new}\n")
        until("both credentials are valid", 120, lambda: self.answers(new) == ["200", "200"] == self.answers(old))
        for load in test.loads:
            load.credential(new)
        # Webhooks on their way may still have the old one.
        time.sleep(1)
        test.secret("cmc-bridge-credentials", basic=f"{new}\n")
        until("the old credential is refused", 120, lambda: self.answers(old) == ["401", "401"])
        test.secret("cmc-bridge-credentials", basic=f"{new}\n{old}\n")
        until("both are valid again", 120, lambda: self.answers(old) == ["200", "200"])
        for load in test.loads:
            load.credential(old)
        if [pod["metadata"]["uid"] for pod in test.bridge_pods()] != pods:
            raise Failed("a changed credential replaced pods")

    def kafka_password(self):
        """Read at start only: change it in Kafka and in the Secret, then restart, as the chart's README says."""
        test = self.test
        test.kafka.set_password("another password")
        test.secret("kafka-password", password="another password")
        test.kubectl("rollout", "restart", "statefulset/cmc-bridge")
        test.kubectl("rollout", "status", "statefulset/cmc-bridge", "--timeout=180s")
        test.serving(2)

    def another_user(self):
        """Another user with the same fsGroup reads the spool that the former one wrote."""
        self.test.upgrade("podSecurityContext.runAsUser=70000")
        self.test.serving(2)

    def client(self, labels, address, port, path):
        """A pod that asks for the path once a second until it gets it, at most 8 times. Returns whether it did."""
        test = self.test
        restricted = {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        ask = f"exec 3<>/dev/tcp/{address}/{port}; printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3; read -r line <&3; [[ $line == *' 200 '* ]]"
        script = 'for n in {1..8}; do busybox timeout 1 bash -c "$0" && exit; busybox sleep 1; done; exit 1'
        self.cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "client", "labels": labels},
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [
                        {
                            "name": "client",
                            "image": images.TOOLS,
                            "command": ["/bin/bash", "-c", script, ask],
                            "securityContext": restricted,
                        }
                    ],
                },
            }
        )
        ends = {"Succeeded": "yes", "Failed": "no"}
        phase = until("the client ends", 90, lambda: ends.get(test.get("pod", "client")["status"].get("phase")))
        test.kubectl("delete", "pod", "client", "--timeout=60s")
        return phase == "yes"

    def network_policy(self):
        """Only the named peers reach the webhooks' port, and helm test passes three times of three."""
        test = self.test
        test.upgrade(
            **{
                "networkPolicy.webhooksFrom": [
                    {"ipBlock": {"cidr": NODES_ADDRESSES}},
                    {"podSelector": {"matchLabels": {"may-post": "yes"}}},
                ],
                "networkPolicy.adminFrom": [{"podSelector": {"matchLabels": {"may-scrape": "yes"}}}],
            }
        )
        pod, service = self.addresses()[0], test.get("service", "cmc-bridge")["spec"]["clusterIP"]
        for what, labels, address, port, path, wanted in (
            ("a peer", {"may-post": "yes"}, service, 8080, "/healthz", True),
            ("a stranger", {}, pod, 8080, "/healthz", False),
            ("a monitor", {"may-scrape": "yes"}, pod, 9464, "/metrics", True),
            ("a peer that is no monitor", {"may-post": "yes"}, pod, 9464, "/metrics", False),
        ):
            if self.client(labels, address, port, path) != wanted:
                raise Failed(f"{what} {'does not reach' if wanted else 'reaches'} {address}:{port}{path}")
        for _ in range(3):
            test.helm_test()

    def reconcile(self):
        """A run of the CronJob adds what the sender has of the last day and the topics lack, through the same NetworkPolicy."""
        test, authority = self.test, self.test.authority
        authority.sign("sender", "/CN=sender", f"IP:{CONTROL_PLANE}")
        sender = Sender(CONTROL_PLANE, authority.directory / "sender.crt", authority.directory / "sender.key")
        test.secret("sender-api", key=KEY)
        # The last day that has been over for an hour, and the next one, which may become it meanwhile.
        settled = datetime.datetime.now(datetime.timezone(datetime.timedelta(hours=9))) - datetime.timedelta(hours=1)
        days = [str(settled.date() - datetime.timedelta(days=1)), str(settled.date())]
        rows = {day: [delivery(f"<{day}.{n}@example.jp>", f"{day} {n % 24:02}:15:05") for n in range(300)] for day in days}
        sender.rows["deliveries"] = [row for day in days for row in rows[day]]
        lost = {day: rows[day][::7] for day in days}
        kept = []
        for day in days:
            of_day = [row for row in rows[day] if row not in lost[day]]
            if self.post("cmc:change-me", webhook("deliveries", of_day), self.addresses()[0]) != ["200"]:
                raise Failed(f"the webhook of {day} was refused")
            kept += of_day
        test.upgrade(
            "reconcile.enabled=true",
            f"reconcile.user={READER}",
            "reconcile.key.secretName=sender-api",
            "reconcile.ca.secretName=kafka-ca",
            f"config.sender_api.url={sender.url}",
            "config.sender_api.server_compositions={pro}",
            "config.sender_api.pause=10ms",
        )
        test.serving(2)
        test.kubectl("create", "job", "reconcile-now", "--from=cronjob/cmc-bridge-reconcile")
        test.kubectl("wait", "--for=condition=Complete", "--timeout=180s", "job/reconcile-now")
        log = test.kubectl("logs", "--selector=job-name=reconcile-now", "--tail=-1")
        day = days[f"{days[1]} pro deliveries" in log]
        missing = len(lost[day])
        if f"missing {missing}, added {missing}" not in log:
            raise Failed(f"the reconciliation did not add {missing} events: {log}")
        test.more |= {row["messageId"] for row in kept + lost[day]}

    def larger_volumes(self):
        """The chart's README, "Larger volumes". The class can't grow directories, so the test plays the part of a driver."""
        test, size = self.test, "40Gi"
        uids = {pod["metadata"]["uid"] for pod in test.bridge_pods()}
        for number in range(2):
            claim = f"spool-cmc-bridge-{number}"
            test.kubectl("patch", "pvc", claim, "--patch", json.dumps({"spec": {"resources": {"requests": {"storage": size}}}}))
            volume = test.get("pvc", claim)["spec"]["volumeName"]
            self.cluster.kubectl("patch", "pv", volume, "--patch", json.dumps({"spec": {"capacity": {"storage": size}}}))
            test.kubectl(
                "patch", "pvc", claim, "--subresource=status", "--patch", json.dumps({"status": {"capacity": {"storage": size}}})
            )
        test.kubectl("delete", "statefulset", "cmc-bridge", "--cascade=orphan")
        if {pod["metadata"]["uid"] for pod in test.bridge_pods() if "deletionTimestamp" not in pod["metadata"]} != uids:
            raise Failed("the pods did not outlive their StatefulSet")
        # This may roll the pods: `kubectl rollout restart` had left a mark on the old StatefulSet.
        test.upgrade(f"persistence.size={size}", "drain.claims={spool-cmc-bridge-9}")
        test.serving(2)
        if test.get("jobs", "--selector", "app.kubernetes.io/component=drain")["items"]:
            raise Failed("without a StatefulSet, a claim that doesn't exist is drained")
        (template,) = test.get("statefulset", "cmc-bridge")["spec"]["volumeClaimTemplates"]
        if template["spec"]["resources"]["requests"]["storage"] != size:
            raise Failed("the StatefulSet asks for the old size")

    def no_right_to_list_claims(self):
        """As a user who may do everything in the namespace but list claims: refused with find, possible without."""
        test = self.test
        resources = ["configmaps", "secrets", "services", "serviceaccounts", "pods"]
        rules = [
            {"apiGroups": [""], "resources": resources, "verbs": ["*"]},
            {"apiGroups": ["apps", "batch", "policy", "networking.k8s.io"], "resources": ["*"], "verbs": ["*"]},
        ]
        self.cluster.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "Role",
                "metadata": {"name": "no-claims", "namespace": "mail"},
                "rules": rules,
            }
        )
        self.cluster.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": "no-claims", "namespace": "mail"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "no-claims"},
                "subjects": [{"kind": "User", "name": "operator", "apiGroup": "rbac.authorization.k8s.io"}],
            }
        )
        refusal = ""
        try:
            test.upgrade(user="operator")
        except Failed as refused:
            refusal = str(refused)
        if "persistentvolumeclaims is forbidden" not in refusal:
            raise Failed(f"without the right to list claims helm says: {refusal or 'nothing'}")
        test.upgrade("drain.find=false", "drain.claims={}", user="operator")
        test.serving(2)
        test.upgrade("drain.find=true", "drain.claims=null")

    def lost_node(self):
        """A node is gone at once, with a replica. It comes back with its disk."""
        test = self.test
        # Its load would keep the node's network.
        (there,) = [load for load in test.loads if load.name.startswith("n2")]
        there.stop()
        test.loads.remove(there)
        self.cluster.lose_node("n2")
        until("the node counts as lost", 120, lambda: " NotReady" in self.cluster.kubectl("get", "nodes", "--no-headers"))
        time.sleep(5)
        self.cluster.start_node("n2")
        self.cluster.wait_for_nodes()
        test.serving(2)

    def memory(self):
        """The default limit under large webhooks, while Kafka is away and when it has come back."""
        test = self.test
        test.stop_load()
        restarts = self.restarts()
        test.start_load("http", 1000, "--connections=64", "--events=20", "--pad=200000")
        with test.kafka.unreachable():
            time.sleep(8)
        time.sleep(8)
        test.stop_load()
        for pod in test.bridge_pods():
            name, node = pod["metadata"]["name"], pod["spec"]["nodeName"]
            (container,) = pod["status"]["containerStatuses"]
            limit = pod["spec"]["containers"][0]["resources"]["limits"]["memory"]
            identity = container["containerID"].removeprefix("containerd://")
            process = re.search(
                rf"^{identity}\s+(\d+)", self.cluster.on_node(node, "ctr", "--namespace", "k8s.io", "tasks", "list"), re.M
            )[1]
            status = self.cluster.on_node(node, "cat", f"/proc/{process}/status")
            own = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) >> 10
            groups = dict(
                line.split(":", 2)[1:] for line in self.cluster.on_node(node, "cat", f"/proc/{process}/cgroup").splitlines()
            )
            group = f"/sys/fs/cgroup/memory{groups['memory']}" if "memory" in groups else f"/sys/fs/cgroup{groups['']}"
            file = "memory.max_usage_in_bytes" if "memory" in groups else "memory.peak"
            whole = int(self.cluster.on_node(node, "cat", f"{group}/{file}")) // MIB
            print(
                f"   {name}: limit {limit}; peak of the process {own} MiB, of the container with its page cache {whole} MiB",
                flush=True,
            )
            if limit != "1280Mi" or own > 1280 * 4 // 5:
                raise Failed(f"the process of {name} needs more than four fifths of the limit")
        if self.restarts() != restarts:
            raise Failed(f"containers restarted: {restarts}, then {self.restarts()}")
        until("the backlog is delivered", 120, self.without_backlog)
        test.start_load()

    def restarts(self):
        return {pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in self.test.bridge_pods()}

    def without_backlog(self):
        for pod in self.test.bridge_pods():
            program = f"import urllib.request; print(urllib.request.urlopen('http://{pod['status']['podIP']}:9464/metrics').read().decode())"
            metrics = self.cluster.on_network(pod["spec"]["nodeName"], "python3", "-c", program)
            if any(float(value) for value in re.findall(r"^cmc_bridge_backlog_events\{.*\} (\S+)", metrics, re.M)):
                return False
        return True

    def certificates(self):
        """A renewed certificate is served without a restart and without a refusal. helm test verifies it with a private authority."""
        test = self.test
        test.stop_load()
        self.new_certificate("first")
        test.secret("authority", ca_crt=(test.authority.directory / "ca.crt").read_text())
        test.upgrade("tls.secretName=webhooks-tls", "tests.ca.secretName=authority")
        test.serving(2)
        test.start_load("https")
        test.helm_test()
        with test.step("a renewed certificate, without a restart", may_refuse=False):
            before = self.certificates_served()
            self.new_certificate("second")
            until("every pod serves the renewed certificate", 120, lambda: not self.certificates_served() & before)
        test.stop_load()
        test.upgrade("tls.secretName=", "tests.ca.secretName=")
        test.serving(2)
        test.start_load()

    def new_certificate(self, name):
        authority = self.test.authority
        authority.sign(name, "/CN=cmc-bridge", "DNS:cmc-bridge.mail.svc")
        files = {f"tls_{kind}": (authority.directory / f"{name}.{kind}").read_text() for kind in ("crt", "key")}
        self.test.secret("webhooks-tls", **files)

    def certificates_served(self):
        program = "import ssl, sys; print(ssl.get_server_certificate((sys.argv[1], 8080)))"
        return {self.cluster.on_network("n1", "python3", "-c", program, address) for address in self.addresses()}


def steps(test):
    """Name, what happens, whether a webhook may be refused, and the function of each."""
    scenarios = Scenarios(test)
    return [
        ("credentials", "another credential of CMC, without a restart", False, scenarios.credentials),
        ("kafka-password", "another password for Kafka, with a restart", False, scenarios.kafka_password),
        ("user", "another user of the same group", False, scenarios.another_user),
        ("policies", "network policies, and helm test three times", False, scenarios.network_policy),
        ("reconcile", "reconciliation with the sender's Web API", False, scenarios.reconcile),
        ("volumes", "larger volumes", False, scenarios.larger_volumes),
        ("rights", "helm's user may not list claims", False, scenarios.no_right_to_list_claims),
        ("lost-node", "a lost node", True, scenarios.lost_node),
        ("memory", "the memory limit: large webhooks, Kafka away and back", True, scenarios.memory),
        ("certificates", "TLS on the webhooks' port", None, scenarios.certificates),
    ]
