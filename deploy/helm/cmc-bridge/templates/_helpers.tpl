{{- define "cmc-bridge.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* At most 50 characters, for suffixes follow. */}}
{{- define "cmc-bridge.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- $name := include "cmc-bridge.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* What selects the pods of the StatefulSet, and no pod of a Job or test. */}}
{{- define "cmc-bridge.selector" -}}
app.kubernetes.io/name: {{ include "cmc-bridge.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: bridge
{{- end }}

{{- define "cmc-bridge.labels" -}}
{{ include "cmc-bridge.meta" . }}
app.kubernetes.io/component: bridge
{{- end }}

{{/* For objects of another component. */}}
{{- define "cmc-bridge.meta" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/name: {{ include "cmc-bridge.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "cmc-bridge.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "cmc-bridge.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- include "cmc-bridge.fullname" . }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "cmc-bridge.path" -}}
{{- dig "ingest" "path" "/webhooks/events" .Values.config }}
{{- end }}

{{/* The paths of webhooks as a comma-separated list. */}}
{{- define "cmc-bridge.paths" -}}
{{- include "cmc-bridge.path" . }}
{{- if dig "streams" "inbound" "enabled" false .Values.config }},{{ dig "ingest" "inbound_path" "/webhooks/inbound" .Values.config }}{{ end }}
{{- end }}

{{/* A time of the configuration in whole seconds, rounded up. */}}
{{- define "cmc-bridge.seconds" -}}
{{- $text := ternary (int64 . | toString) (toString .) (kindIs "float64" .) }}
{{- $number := regexFind "^[0-9]+" $text | int64 }}
{{- $unit := regexReplaceAll "^[0-9]+\\s*" $text "" }}
{{- if eq $unit "ms" }}{{ div (add $number 999) 1000 }}
{{- else if or (eq $unit "") (eq $unit "s") }}{{ $number }}
{{- else if eq $unit "m" }}{{ mul $number 60 }}
{{- else if eq $unit "h" }}{{ mul $number 3600 }}
{{- else }}{{ fail (printf "%q is no time: write a number of seconds, or 500ms, 5s, 2m, 1h" $text) }}
{{- end }}
{{- end }}

{{/* A size of the configuration or of a volume in bytes. */}}
{{- define "cmc-bridge.bytes" -}}
{{- $text := ternary (int64 . | toString) (toString .) (kindIs "float64" .) }}
{{- $units := dict "" 1 "k" 1000 "K" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- $unit := regexReplaceAll "^[0-9]+\\s*" $text "" | trimSuffix "B" }}
{{- if not (hasKey $units $unit) }}{{ fail (printf "%q is no size: write whole bytes, or with Ki, Mi, Gi, Ti, k, M, G, T" $text) }}{{ end }}
{{- mul (regexFind "^[0-9]+" $text | int64) (get $units $unit | int64) }}
{{- end }}

{{- define "cmc-bridge.terminationGracePeriodSeconds" -}}
{{- $lameDuck := include "cmc-bridge.seconds" (dig "shutdown" "lame_duck" "5s" .Values.config) }}
{{- $grace := include "cmc-bridge.seconds" (dig "shutdown" "grace" "25s" .Values.config) }}
{{- add $lameDuck $grace .Values.terminationMarginSeconds }}
{{- end }}

{{/* The enabled streams as a comma-separated list. */}}
{{- define "cmc-bridge.streams" -}}
{{- $defaults := dict "deliveries" true "bounces" true "blocks" false "inbound" false "dead_letters" true }}
{{- $enabled := list }}
{{- range $stream, $default := $defaults }}
{{- if dig "streams" $stream "enabled" $default $.Values.config }}{{ $enabled = append $enabled $stream }}{{ end }}
{{- end }}
{{- join "," $enabled }}
{{- end }}

{{/* What must hold besides the schema; each message says what to do. */}}
{{- define "cmc-bridge.validate" -}}
{{- $config := .Values.config }}
{{- if not (dig "kafka" "bootstrap_servers" "" $config) }}
{{- fail "config.kafka.bootstrap_servers is missing: host:port of some brokers, with commas" }}
{{- end }}
{{- if dig "ingest" "auth" "allow_anonymous" false $config }}
{{- if .Values.credentials.secretName }}
{{- fail "config.ingest.auth.allow_anonymous and credentials.secretName exclude each other: choose one" }}
{{- end }}
{{- else if not .Values.credentials.secretName }}
{{- fail "credentials.secretName is missing: the Secret with the credentials that CMC presents (one user:password a line in its key \"basic\")" }}
{{- else if not (or .Values.credentials.basicKey .Values.credentials.bearerTokensKey .Values.credentials.apiKeysKey) }}
{{- fail "credentials: name at least one key of the Secret: basicKey, bearerTokensKey or apiKeysKey" }}
{{- end }}
{{- $each := add (include "cmc-bridge.bytes" (dig "spool" "max_bytes" "4GiB" $config)) (mul 2 (include "cmc-bridge.bytes" (dig "spool" "segment_bytes" "16MiB" $config))) }}
{{- $streams := include "cmc-bridge.streams" . | splitList "," | len }}
{{- $need := div (mul $each $streams 11) 10 }}
{{- if lt (include "cmc-bridge.bytes" .Values.persistence.size | int64) $need }}
{{- fail (printf "persistence.size %s is too small: %d streams want %d MiB (spool.max_bytes and two segments each, and a tenth more); raise it (of a release that is there as the chart's README says under Larger volumes), or lower config.spool.max_bytes" .Values.persistence.size $streams (div (add $need 1048575) 1048576)) }}
{{- end }}
{{- end }}

{{/* The configuration: the values' tree, and what the chart itself decides. */}}
{{- define "cmc-bridge.config" -}}
{{- include "cmc-bridge.validate" . }}
{{- $config := deepCopy .Values.config }}
{{- $auth := dict }}
{{- with .Values.credentials }}{{ if .secretName }}
{{- range $setting, $key := dict "basic_file" .basicKey "bearer_tokens_file" .bearerTokensKey "api_keys_file" .apiKeysKey }}
{{- if $key }}{{ $_ := set $auth $setting (printf "/run/secrets/cmc-bridge/credentials/%s" $key) }}{{ end }}
{{- end }}{{ end }}{{ end }}
{{- $ingest := dict "listen" (printf "%s:8080" .Values.bindAddress) "auth" $auth }}
{{- with .Values.tls }}{{ if .secretName }}
{{- $_ := set $ingest "tls" (dict "certificate" (printf "/run/secrets/cmc-bridge/tls/%s" .certificateKey) "key" (printf "/run/secrets/cmc-bridge/tls/%s" .keyKey)) }}
{{- end }}{{ end }}
{{- $properties := dict }}
{{- with .Values.kafka }}
{{- if .password.secretName }}{{ $_ := set $properties "sasl.password_file" (printf "/run/secrets/cmc-bridge/kafka-password/%s" .password.key) }}{{ end }}
{{- if .ca.secretName }}{{ $_ := set $properties "ssl.ca.location" (printf "/run/secrets/cmc-bridge/kafka-ca/%s" .ca.key) }}{{ end }}
{{- if .clientSecret.secretName }}{{ $_ := set $properties "sasl.oauthbearer.client.secret_file" (printf "/run/secrets/cmc-bridge/kafka-client-secret/%s" .clientSecret.key) }}{{ end }}
{{- if .tokenCa.secretName }}{{ $_ := set $properties "https.ca.location" (printf "/run/secrets/cmc-bridge/kafka-token-ca/%s" .tokenCa.key) }}{{ end }}
{{- if .client.secretName }}
{{- $_ := set $properties "ssl.certificate.location" (printf "/run/secrets/cmc-bridge/kafka-client/%s" .client.certificateKey) }}
{{- $_ := set $properties "ssl.key.location" (printf "/run/secrets/cmc-bridge/kafka-client/%s" .client.keyKey) }}
{{- end }}
{{- end }}
{{- $own := dict "ingest" $ingest "admin" (dict "listen" (printf "%s:9464" .Values.bindAddress)) "spool" (dict "dir" "/var/lib/cmc-bridge") "kafka" (dict "properties" $properties) }}
{{- include "cmc-bridge.toml" (dict "path" (list) "table" (mergeOverwrite $config $own)) | trim }}
{{- end }}

{{/* A table as TOML: its values first, then the tables below. Helm's toToml writes whole numbers as floats. */}}
{{- define "cmc-bridge.toml" -}}
{{- $path := .path }}
{{- range $key, $value := .table }}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value)) }}
{{ include "cmc-bridge.tomlKey" $key }} = {{ include "cmc-bridge.tomlValue" $value }}
{{- end }}
{{- end }}
{{- range $key, $value := .table }}
{{- if and (kindIs "map" $value) $value }}
{{- $below := append $path (include "cmc-bridge.tomlKey" $key) }}

[{{ join "." $below }}]
{{- include "cmc-bridge.toml" (dict "path" $below "table" $value) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "cmc-bridge.tomlKey" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}

{{- define "cmc-bridge.tomlValue" -}}
{{- if kindIs "slice" . }}[{{ range $index, $item := . }}{{ if $index }}, {{ end }}{{ include "cmc-bridge.tomlValue" $item }}{{ end }}]
{{- else if kindIs "float64" . }}{{ if eq . (floor .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- else }}{{ toJson . }}
{{- end }}
{{- end }}

{{/* Settings that every pod of the chart shares. */}}
{{- define "cmc-bridge.podSpec" -}}
serviceAccountName: {{ include "cmc-bridge.serviceAccount" . }}
automountServiceAccountToken: false
# No variables such as CMC_BRIDGE_PORT for each Service of the namespace (the bridge would ignore them).
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The variable lets every command in the pod see the configuration, also those of `kubectl exec`. */}}
{{- define "cmc-bridge.env" -}}
- name: CMC_BRIDGE_CONFIG
  value: /etc/cmc-bridge/cmc-bridge.toml
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The memory in MiB that the bridge may need: docs/operations.md, "Sizing". A quarter is the kernel's. */}}
{{- define "cmc-bridge.memory" -}}
{{- $bodies := include "cmc-bridge.bytes" (dig "ingest" "max_bytes_in_flight" "256MiB" .Values.config) }}
{{- $connections := dig "ingest" "max_connections" 4096 .Values.config }}
{{- $transaction := include "cmc-bridge.bytes" (dig "kafka" "transaction_bytes" "32MiB" .Values.config) }}
{{- $streams := include "cmc-bridge.streams" . | splitList "," | len }}
{{- $bytes := add $bodies (mul $connections 65536) (mul 80 1048576) (mul $streams 4 $transaction) }}
{{- div (mul $bytes 5) (mul 4 1048576) }}
{{- end }}

{{/* The single files for the connection to Kafka, as JSON, by the names of their volumes. */}}
{{- define "cmc-bridge.kafkaFiles" -}}
{{- with .Values.kafka }}{{ dict "kafka-password" .password "kafka-ca" .ca "kafka-client-secret" .clientSecret "kafka-token-ca" .tokenCa | toJson }}{{ end }}
{{- end }}

{{/* The configuration file and the files from Secrets. */}}
{{- define "cmc-bridge.volumes" -}}
- name: config
  configMap:
    name: {{ include "cmc-bridge.fullname" . }}
{{- with .Values.credentials }}{{ if .secretName }}
- name: credentials
  secret:
    secretName: {{ .secretName }}
    defaultMode: 0440
{{- end }}{{ end }}
{{- range $name, $file := include "cmc-bridge.kafkaFiles" . | fromJson }}{{ if $file.secretName }}
- name: {{ $name }}
  secret:
    secretName: {{ $file.secretName }}
    defaultMode: 0440
    items: [{ key: {{ $file.key | quote }}, path: {{ $file.key | quote }} }]
{{- end }}{{ end }}
{{- with .Values.kafka.client }}{{ if .secretName }}
- name: kafka-client
  secret:
    secretName: {{ .secretName }}
    defaultMode: 0440
{{- end }}{{ end }}
{{- with .Values.tls }}{{ if .secretName }}
- name: tls
  secret:
    secretName: {{ .secretName }}
    defaultMode: 0440
{{- end }}{{ end }}
{{- end }}

{{- define "cmc-bridge.volumeMounts" -}}
- name: config
  mountPath: /etc/cmc-bridge
  readOnly: true
{{- $files := include "cmc-bridge.kafkaFiles" . | fromJson }}
{{- range $name, $secret := merge (dict "credentials" .Values.credentials "kafka-client" .Values.kafka.client "tls" .Values.tls) $files }}
{{- if $secret.secretName }}
- name: {{ $name }}
  mountPath: /run/secrets/cmc-bridge/{{ $name }}
  readOnly: true
{{- end }}
{{- end }}
{{- end }}
