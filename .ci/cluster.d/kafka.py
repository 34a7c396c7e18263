"""Apache Kafka outside the nodes, with a plain listener for tests and one with SASL_SSL, and its own tools to read topics."""

import base64
import collections
import contextlib
import subprocess
import uuid

from cluster import CONTROL_PLANE, POD_NETWORK, run, until

PLAIN = f"{CONTROL_PLANE}:9092"
SECURED = f"{CONTROL_PLANE}:9094"
USER = "cmc-bridge"
TOPICS = {"cmc.deliveries": 6, "cmc.bounces": 6, "cmc.dead-letters": 1}


class Kafka:
    def __init__(self, directory, jars, authority, password):
        """`jars` is the directory with Kafka's jars; `authority` signs the broker's certificate; USER has the password."""
        self.directory = directory
        self.jars = jars
        directory.mkdir()
        authority.sign("kafka", "/CN=kafka", f"IP:{CONTROL_PLANE}")
        (directory / "keys.pem").write_text("".join((authority.directory / f"kafka.{kind}").read_text() for kind in ("key", "crt")))
        (directory / "log4j2.yaml").write_text(
            "Configuration:\n"
            "  Appenders: {Console: {name: S, target: SYSTEM_ERR, PatternLayout: {pattern: '%d %p %m%n'}}}\n"
            "  Loggers: {Root: {level: ERROR, AppenderRef: [{ref: S}]}}\n"
        )
        (directory / "broker.properties").write_text(f"""process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{CONTROL_PLANE}:9093
listeners=PLAINTEXT://{PLAIN},CONTROLLER://{CONTROL_PLANE}:9093,SASL_SSL://{SECURED}
advertised.listeners=PLAINTEXT://{PLAIN},SASL_SSL://{SECURED}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location={directory}/keys.pem
log.dirs={directory}/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=3
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
""")
        identity = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        run(
            *self._java("kafka.tools.StorageTool"),
            "format",
            "-t",
            identity,
            "-c",
            directory / "broker.properties",
            "--add-scram",
            f"SCRAM-SHA-512=[name={USER},password={password}]",
        )
        with open(directory / "log", "wb") as log:
            self.process = subprocess.Popen(
                [*self._java("kafka.Kafka"), directory / "broker.properties"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def create_topics(self):
        for topic, partitions in TOPICS.items():
            until(
                f"topic {topic} is there",
                90,
                lambda topic=topic, partitions=partitions: (
                    self._tool(
                        "org.apache.kafka.tools.TopicCommand",
                        "--create",
                        "--if-not-exists",
                        "--topic",
                        topic,
                        "--partitions",
                        str(partitions),
                    )
                    is not None
                ),
            )

    def set_password(self, password):
        self._tool(
            "kafka.admin.ConfigCommand",
            "--alter",
            "--entity-type",
            "users",
            "--entity-name",
            USER,
            "--add-config",
            f"SCRAM-SHA-512=[password={password}]",
        )

    # A broker that only stands still would lose leadership of its own partitions, and a coordinator that sees no leader writes no
    # marker for an aborted transaction (docs/operations.md, "Give the cluster its own controllers").
    @contextlib.contextmanager
    def unreachable(self):
        """Packets from pods are dropped. Connections stay open, and nothing answers."""
        rule = [
            "INPUT",
            "--source",
            POD_NETWORK,
            "--protocol",
            "tcp",
            "--match",
            "multiport",
            "--dports",
            "9092,9094",
            "--jump",
            "DROP",
        ]
        run("iptables", "--wait", "--insert", *rule)
        yield
        run("iptables", "--wait", "--delete", *rule)

    def keys(self, topics="|".join(TOPICS)):
        """How often each key stands in the topics, seen by a consumer of committed transactions. Ends once no more come."""
        lines = run(
            *self._java("org.apache.kafka.tools.consumer.ConsoleConsumer"),
            "--bootstrap-server",
            PLAIN,
            "--include",
            topics,
            "--from-beginning",
            "--isolation-level",
            "read_committed",
            "--timeout-ms",
            "6000",
            "--formatter-property",
            "print.key=true",
            "--formatter-property",
            "print.value=false",
        )
        return collections.Counter(lines.splitlines())

    def _tool(self, tool, *words):
        return run(*self._java(tool), "--bootstrap-server", PLAIN, *words)

    def _java(self, main):
        return [
            "java",
            "-Xmx512m",
            "-XX:TieredStopAtLevel=1",
            f"-Dlog4j2.configurationFile={self.directory}/log4j2.yaml",
            "-cp",
            f"{self.jars}/*",
            main,
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
