{{/* Names, labels and the parts that several objects share. */}}

{{- define "graceful.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Prefix of all names: the release, with the chart's name unless it is in there. At most 40: suffixes follow. */}}
{{- define "graceful.prefix" -}}
{{- $name := include "graceful.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What never changes between versions of a release: the only labels that selectors may use. */}}
{{- define "graceful.selectorLabels" -}}
app.kubernetes.io/name: {{ include "graceful.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "graceful.labels" -}}
{{ include "graceful.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "graceful.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* Argument: dict root, part (submitter or ray). */}}
{{- define "graceful.account" -}}
{{- $account := index .root.Values.serviceAccounts .part -}}
{{- if not (or $account.create $account.name) -}}
{{- fail (printf "serviceAccounts.%s.name: required when serviceAccounts.%s.create is false" .part .part) -}}
{{- end -}}
{{- $account.name | default (printf "%s-%s" (include "graceful.prefix" .root) .part) -}}
{{- end -}}

{{/* Variables of every pod: what the user sets, and the connections. YAML of a mapping. */}}
{{- define "graceful.environment" -}}
{{- $env := dict -}}
{{- with .Values.s3.endpoint }}{{ $_ := set $env "AWS_ENDPOINT_URL" . }}{{ end -}}
{{- with .Values.s3.region }}{{ $_ := set $env "AWS_DEFAULT_REGION" . }}{{ end -}}
{{- toYaml (mergeOverwrite $env (deepCopy .Values.env)) -}}
{{- end -}}

{{/* A cluster profile: what the chart knows, overwritten by what the user wrote. Argument: dict root, profile. */}}
{{- define "graceful.profile" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
{{- $known := dict
      "kind" "kuberay"
      "namespace" $root.Release.Namespace
      "image" (include "graceful.image" $root)
      "pull_policy" $values.image.pullPolicy
      "service_account" (include "graceful.account" (dict "root" $root "part" "ray"))
      "user" $values.podSecurity.user
-}}
{{- with $values.image.pullSecrets }}{{ $_ := set $known "pull_secrets" . }}{{ end -}}
{{- with $values.queue.name }}{{ $_ := set $known "queue" . }}{{ end -}}
{{- with include "graceful.environment" $root | fromYaml }}{{ $_ := set $known "env" . }}{{ end -}}
{{- with $values.s3.secretName }}{{ $_ := set $known "env_from_secrets" (list .) }}{{ end -}}
{{- $mlflow := dict -}}
{{- with $values.mlflow.uri }}{{ $_ := set $mlflow "uri" . }}{{ end -}}
{{- with $values.mlflow.secretName }}{{ $_ := set $mlflow "token_secret" . }}{{ end -}}
{{- with $mlflow }}{{ $_ := set $known "mlflow" . }}{{ end -}}
{{- $storage := dict "path" $values.storage.path -}}
{{- with $values.storage.claim }}{{ $_ := set $storage "claim" . }}{{ end -}}
{{- $_ := set $known "storage" $storage -}}
{{- toYaml (mergeOverwrite $known (deepCopy .profile)) -}}
{{- end -}}

{{/* A peer list of a NetworkPolicy rule from addresses; nothing: any. */}}
{{- define "graceful.cidrs" -}}
{{- range . }}
- ipBlock: {cidr: {{ . }}}
{{- end -}}
{{- end -}}

{{- define "graceful.tcpPorts" -}}
{{- range . }}
- {protocol: TCP, port: {{ . }}}
{{- end -}}
{{- end -}}
