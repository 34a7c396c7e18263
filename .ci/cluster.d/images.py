"""Makes the images that the cluster runs as archives that containerd imports: no engine and no registry are needed.

The bridge's has what the Dockerfile's last stages hold that the program can use: the program, glibc, libgcc, CA certificates. It
has two tags, so that a roll-out can change the version. The other has busybox and bash: it is the pods' pause, and a client for tests.
"""

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

BRIDGE = "registry.example.com/cmc-bridge"
TOOLS = "registry.example.com/tools:1"
# Numbers of `nonroot` in the Dockerfile's base image.
NONROOT = 65532


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer(root, owned=()):
    """The tree as an uncompressed tar, owned by root except for the paths in `owned`."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            entry = tar.gettarinfo(path, arcname=str(path.relative_to(root)))
            entry.uid = entry.gid = NONROOT if entry.name in owned else 0
            entry.uname = entry.gname = ""
            entry.mtime = 0
            with open(path, "rb") if entry.isreg() else io.BytesIO() as content:
                tar.addfile(entry, content)
    return raw.getvalue()


def write_image(file, names, content, config):
    """An OCI archive of one layer, under all these names."""
    blobs = {}

    def blob(media_type, data):
        blobs[sha256(data)] = data
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": sha256(data), "size": len(data)}

    def document(media_type, value):
        return blob(media_type + "+json", json.dumps(value).encode())

    layers = [blob("layer.v1.tar", content)]
    rootfs = {"type": "layers", "diff_ids": [sha256(content)]}
    manifest = document(
        "manifest.v1",
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": document("config.v1", {"architecture": "amd64", "os": "linux", "config": config, "rootfs": rootfs}),
            "layers": layers,
        },
    )
    named = [manifest | {"annotations": {"io.containerd.image.name": name}} for name in names]
    files = {f"blobs/sha256/{digest.removeprefix('sha256:')}": data for digest, data in blobs.items()}
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": named}).encode()
    with tarfile.open(file, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def add_libraries(root, program):
    for library in re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout):
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)


def bridge_root(root, bridge, entrypoint):
    program = root / entrypoint.lstrip("/")
    program.parent.mkdir(parents=True)
    # A tenth of the size; its backtraces are not looked at here.
    subprocess.run(["objcopy", "--strip-debug", bridge, program], check=True)
    program.chmod(0o555)
    add_libraries(root, bridge)
    for directory in ("etc/ssl/certs", "tmp", "var/lib/cmc-bridge"):
        (root / directory).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs")
    (root / "etc/passwd").write_text(
        f"root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:{NONROOT}:{NONROOT}:nonroot:/home/nonroot:/sbin/nologin\n"
    )
    (root / "etc/nsswitch.conf").write_text("hosts: files dns\n")


def version():
    return re.search(r'^appVersion: "?([^"\n]*)', Path("deploy/helm/cmc-bridge/Chart.yaml").read_text(), re.M)[1]


def make(bridge, directory):
    """Writes the archives into the directory."""
    dockerfile = Path("deploy/docker/Dockerfile").read_text()
    entrypoint, command = (json.loads(re.search(rf"^{word} (.*)", dockerfile, re.M)[1]) for word in ("ENTRYPOINT", "CMD"))
    with tempfile.TemporaryDirectory() as place:
        root = Path(place, "bridge")
        bridge_root(root, bridge, entrypoint[0])
        config = {"User": f"{NONROOT}:{NONROOT}", "Entrypoint": entrypoint, "Cmd": command}
        names = [f"{BRIDGE}:{version()}", f"{BRIDGE}:{version()}-next"]
        write_image(directory / "cmc-bridge.tar", names, layer(root, owned=("var/lib/cmc-bridge",)), config)
        root = Path(place, "tools")
        (root / "bin").mkdir(parents=True)
        # Debian's static busybox has no working network: bash's /dev/tcp has.
        for program in ("/bin/busybox", "/bin/bash"):
            shutil.copy(program, root / "bin")
        add_libraries(root, "/bin/bash")
        write_image(
            directory / "tools.tar",
            [TOOLS],
            layer(root),
            {"User": "65535:65535", "Entrypoint": ["/bin/busybox"], "Cmd": ["sleep", "2147483647"]},
        )
