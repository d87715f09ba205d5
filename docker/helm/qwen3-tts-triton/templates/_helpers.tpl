{{- define "qwen3.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "qwen3.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "qwen3.labels" -}}
{{ include "qwen3.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* Other labels than the servers', so that no Service takes a gateway for a server. */ -}}
{{- define "qwen3.gatewaySelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-gateway
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "qwen3.gatewayLabels" -}}
{{ include "qwen3.gatewaySelector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* The pools with their defaults filled in, as YAML. */ -}}
{{- define "qwen3.pools" -}}
{{- $pools := dict }}
{{- range $name, $pool := .Values.pools }}
{{- $_ := set $pools $name (mustMergeOverwrite (deepCopy $.Values.poolDefaults) (default dict $pool)) }}
{{- end }}
{{- toYaml $pools }}
{{- end }}
