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

{{/* Variables of pods that compute: what the user sets, and S3. YAML of a mapping. */}}
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
{{- with $values.storage.uri }}{{ $_ := set $storage "uri" . }}{{ end -}}
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

{{/* A container of a scheduled pod; only one that trains by itself gets connections and credentials.
     Argument: dict root, schedule, command (of the schedule), name, arguments. */}}
{{- define "graceful.scheduled" -}}
{{- $values := .root.Values -}}
{{- $env := dict -}}
{{- $secrets := list -}}
{{- if eq .command "refresh" -}}
{{- $env = include "graceful.environment" .root | fromYaml -}}
{{- $_ := set $env "GRACEFUL_HOME" $values.storage.path -}}
{{- with $values.storage.uri }}{{ $_ := set $env "GRACEFUL_STORAGE" . }}{{ end -}}
{{- with $values.mlflow.uri }}{{ $_ := set $env "MLFLOW_TRACKING_URI" . }}{{ end -}}
{{- $secrets = compact (list $values.mlflow.secretName $values.s3.secretName) -}}
{{- end -}}
- name: {{ .name }}
  image: {{ include "graceful.image" .root }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  command: [graceful]
  args:
    {{- toYaml .arguments | nindent 4 }}
  env:
    - name: HOME
      value: /home/ray
    # The Job's name: one per firing, the same for its retries, so that a retry resumes the run.
    - name: GRACEFUL_FIRING
      valueFrom: {fieldRef: {fieldPath: "metadata.labels['batch.kubernetes.io/job-name']"}}
    {{- range $key, $value := mergeOverwrite $env (deepCopy (.schedule.env | default dict)) }}
    - name: {{ $key }}
      value: {{ $value | quote }}
    {{- end }}
  {{- with $secrets }}
  envFrom:
    {{- range . }}
    - secretRef: {name: {{ . }}}
    {{- end }}
  {{- end }}
  resources:
    {{- .schedule.resources | default (index $values.scheduled (printf "%sResources" .command)) | toYaml | nindent 4 }}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: home, mountPath: /home/ray}
    - {name: job, mountPath: /etc/graceful/job, readOnly: true}
    {{- if eq .command "submit" }}
    - {name: profiles, mountPath: /etc/graceful/profiles, readOnly: true}
    {{- else }}
    - {name: runs, mountPath: {{ $values.storage.path }}}
    - {name: shared-memory, mountPath: /dev/shm}
    {{- end }}
{{- end -}}
