"""Validates the built-in kinds of rendered manifests strictly (unknown members are errors), against the oldest Kubernetes that
the chart supports and the newest known. Prints the custom resources as JSON for custom-resources.mjs.

    schemas.py FILE... >custom.json
"""

import json
import sys

import kubernetes_validate
import yaml

VERSIONS = ("1.27", "1.37")
CUSTOM = {"HTTPRoute", "ServiceMonitor", "PrometheusRule", "KafkaTopic", "KafkaUser"}

custom, seen = [], set()
for path in sys.argv[1:]:
    for document in filter(None, yaml.safe_load_all(open(path))):
        kind = document["kind"]
        seen.add(kind)
        if kind in CUSTOM:
            custom.append(document)
            continue
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                sys.exit(f"{path}: {kind} {document['metadata']['name']} against {version}: {error}")

if missing := CUSTOM - seen:
    sys.exit(f"no {missing} was rendered, so the chart's templates for it were not checked")
print(f"{', '.join(sorted(seen - CUSTOM))}: valid for Kubernetes {' and '.join(VERSIONS)}", file=sys.stderr)
json.dump(custom, sys.stdout)
