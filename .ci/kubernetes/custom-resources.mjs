// Validates custom resources. Models generated from the sources of the Gateway API and the Prometheus Operator check theirs: the
// models' validators check values, and the TypeScript compiler refuses unknown members in a literal. No package has Strimzi's
// schemas, so this file lists what the chart may use of them.
//
//     node custom-resources.mjs DIRECTORY_WITH_NODE_MODULES FILE.json
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [tools, file] = process.argv.slice(2);
const documents = JSON.parse(readFileSync(file, "utf8"));
const modules = path.resolve(tools, "node_modules");
const MODELS = {
  HTTPRoute: "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1/HTTPRoute",
  ServiceMonitor: "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor",
  PrometheusRule: "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PrometheusRule",
};

const object = (properties, required = []) => ({ type: "object", additionalProperties: false, properties, required });
const metadata = {
  ...object({ name: { type: "string", pattern: "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$" }, namespace: { type: "string" },
    labels: { type: "object", required: ["strimzi.io/cluster"] }, annotations: { type: "object" } }, ["name"]),
};
const strimzi = (kind, spec) => object({ apiVersion: { enum: ["kafka.strimzi.io/v1"] }, kind: { const: kind }, metadata, spec },
  ["apiVersion", "kind", "metadata", "spec"]);
const SCHEMAS = {
  KafkaTopic: strimzi("KafkaTopic", object({
    topicName: { type: "string", pattern: "^[A-Za-z0-9._-]{1,249}$" },
    partitions: { type: "integer", minimum: 1 },
    replicas: { type: "integer", minimum: 1, maximum: 32767 },
    config: { type: "object" },
  })),
  KafkaUser: strimzi("KafkaUser", object({
    authentication: object({ type: { enum: ["tls", "tls-external", "scram-sha-512"] } }, ["type"]),
    authorization: object({
      type: { const: "simple" },
      acls: { type: "array", items: object({
        resource: object({
          type: { enum: ["topic", "group", "cluster", "transactionalId"] },
          name: { type: "string" },
          patternType: { enum: ["literal", "prefix"] },
        }, ["type", "name"]),
        operations: { type: "array", items: { enum: ["Read", "Write", "Create", "Delete", "Alter", "Describe", "ClusterAction",
          "AlterConfigs", "DescribeConfigs", "IdempotentWrite", "All"] } },
      }, ["resource", "operations"]) },
    }, ["type", "acls"]),
  })),
};

function fail(message) {
  console.error(message);
  process.exit(1);
}

const require = createRequire(path.join(modules, "x.js"));
const Ajv = require("ajv").default;
const ajv = new Ajv({ allErrors: true, strict: false });
let literals = "";
for (const [index, document] of documents.entries()) {
  const { kind, metadata: { name } } = document;
  if (SCHEMAS[kind]) {
    if (!ajv.validate(SCHEMAS[kind], document)) fail(`${kind} ${name}: ${ajv.errorsText()}`);
    continue;
  }
  const model = await import(pathToFileURL(path.join(modules, `${MODELS[kind]}.js`)));
  try {
    new model[kind](document).validate();
  } catch (error) {
    fail(`${kind} ${name}: ${error.message}`);
  }
  literals += `import type { I${kind} as I${index} } from "${MODELS[kind]}";\n`;
  literals += `export const d${index}: I${index} = ${JSON.stringify(document, null, 1)};\n`;
}
const scratch = mkdtempSync(path.join(modules, ".check-"));
try {
  writeFileSync(path.join(scratch, "literals.ts"), literals);
  const { status } = spawnSync(process.execPath, [path.join(modules, "typescript/bin/tsc"), "--noEmit", "--strict", "--skipLibCheck",
    "--module", "nodenext", "--moduleResolution", "nodenext", "--target", "es2022", path.join(scratch, "literals.ts")],
    { stdio: "inherit" });
  // The compiler has printed what is wrong.
  process.exitCode = status;
} finally {
  rmSync(scratch, { recursive: true });
}
if (!process.exitCode) console.log(`${[...new Set(documents.map((document) => document.kind))].sort().join(", ")}: valid`);
