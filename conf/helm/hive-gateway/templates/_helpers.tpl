{{- define "hive-gateway.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "hive-gateway.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "hive-gateway.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "hive-gateway.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "hive-gateway.selector" -}}
app.kubernetes.io/name: {{ include "hive-gateway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "hive-gateway.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{ include "hive-gateway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "hive-gateway.secret" -}}
{{- .Values.existingSecret | default (include "hive-gateway.fullname" .) -}}
{{- end }}

{{- /* The files of the listener's certificate; empty: plain HTTP. */ -}}
{{- define "hive-gateway.cert" -}}
{{- if .Values.gateway.tlsCertPath -}}{{ .Values.gateway.tlsCertPath }}{{- else if .Values.tls.secretName -}}/etc/hive-gateway/tls/tls.crt{{- end -}}
{{- end }}
{{- define "hive-gateway.key" -}}
{{- if .Values.gateway.tlsKeyPath -}}{{ .Values.gateway.tlsKeyPath }}{{- else if .Values.tls.secretName -}}/etc/hive-gateway/tls/tls.key{{- end -}}
{{- end }}
{{- define "hive-gateway.ca" -}}
{{- if .Values.gateway.mtlsCaPath -}}{{ .Values.gateway.mtlsCaPath }}{{- else if and .Values.tls.secretName .Values.tls.mutual -}}/etc/hive-gateway/tls/ca.crt{{- end -}}
{{- end }}

{{- define "hive-gateway.config" -}}
{{- $g := .Values.gateway -}}
{{- $cert := include "hive-gateway.cert" . -}}
{{- $ca := include "hive-gateway.ca" . -}}
{{- if and $cert (not (include "hive-gateway.key" .)) }}{{ fail "gateway.tlsCertPath needs gateway.tlsKeyPath" }}{{ end -}}
{{- if and (eq $g.upstreamForwardFor "chain") (not $g.trustedProxies) }}{{ fail "gateway.upstreamForwardFor: chain needs gateway.trustedProxies, the ingress' networks" }}{{ end -}}
{{- if not (has $g.upstreamForwardFor (list "off" "socket" "chain")) }}{{ fail "gateway.upstreamForwardFor is off, socket or chain" }}{{ end -}}
{{- if or $g.upstreamAuthSecret .Values.existingSecret }}
hive: { gateway_auth_secret_file: /etc/hive-gateway/secrets/gateway }
{{- end }}
listeners:
  - name: wan
    address: {{ if and $cert (not $ca) }}"${POD_IP}:4080"{{ else }}"0.0.0.0:4080"{{ end }}
    {{- if $cert }}
    tls:
      certificates: [{ cert: {{ $cert | quote }}, key: {{ include "hive-gateway.key" . | quote }} }]
      client_auth: {{ if $ca }}{ ca: {{ $ca | quote }}, crl: [] }{{ else }}{ mode: none }{{ end }}
    {{- else }}
    protocol: http
    {{- end }}
    {{- with $g.trustedProxies }}
    trusted_proxies: {{ toJson . }}
    {{- end }}
    local_reply: gateway_v1
    request_rules: [{ name: long-uri, max_uri_bytes: {{ printf "%dB" (int $g.maxUrlBytes) }} }]
    {{- if gt (int $g.requestTimeoutMs) 0 }}
    timeouts: { request_header: {{ min (int $g.requestTimeoutMs) 300000 }}ms, request_body: {{ int $g.requestTimeoutMs }}ms }
    {{- end }}
routes:
  - name: jsonrpc
    paths: [/v1/a2a/jsonrpc]
    methods: [POST]
    peers: any
    upstream: hive
    replace_full_path: {{ $g.jsonrpcPath | quote }}
    body: { limit: {{ printf "%dB" (int $g.maxBodyBytes) }} }
    {{- if gt (int $g.upstreamTimeoutMs) 0 }}
    timeouts: { response: {{ int $g.upstreamTimeoutMs }}ms }
    {{- end }}
    {{- if gt (int $g.rateLimitPerMin) 0 }}
    rate_limits: [{ per: address, rate: {{ int $g.rateLimitPerMin }}/min, shared: {{ not (empty $g.rateLimitRedisUrl) }} }]
    {{- end }}
    {{- with compact (splitList "," (nospace $g.blockUserAgents)) }}
    request_rules: [{ name: user-agents, user_agent: {{ toJson . }} }]
    {{- end }}
  - name: own-api
    paths: [/v1/health, /v1/metrics]
    methods: [GET]
    peers: any
    upstream: admin
    rate_limits: [{ per: address, rate: 50/s }]
upstreams:
  - { name: hive, endpoints: [{{ trimSuffix "/" $g.upstreamBase | quote }}] }
  # Clients get few of the admin listener's connections: the kubelet must find one free.
  - name: admin
    endpoints: ["http://127.0.0.1:9901"]
    trusted: false
    health_check: { enabled: false }
    circuit_breaker: { max_connections: 16, max_pending: 64 }
{{- if $g.rateLimitRedisUrl }}
redis: { url: "${REDIS_URL}" }
{{- end }}
# A quarter of the memory that the pod may have by default. After SIGTERM a pod still gets connections until all nodes know
# that it is no endpoint any more.
server: { body_memory: 64MiB, shutdown_delay: 5s }
admin: { address: "0.0.0.0:9901", bearer_secret_file: /etc/hive-gateway/secrets/admin }
{{- end }}
