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

{{/* The section `proxy` of a profile; nothing: no proxy. YAML of a mapping. */}}
{{- define "graceful.proxy" -}}
{{- $proxy := dict -}}
{{- with .Values.proxy.https }}{{ $_ := set $proxy "https" . }}{{ end -}}
{{- with .Values.proxy.http }}{{ $_ := set $proxy "http" . }}{{ end -}}
{{- if and $proxy .Values.proxy.direct }}{{ $_ := set $proxy "direct" .Values.proxy.direct }}{{ end -}}
{{- toYaml $proxy -}}
{{- end -}}

{{/* Variables by which pods reach what is outside, as graceful/launch/kuberay/ways_out.py has them. YAML of a mapping. */}}
{{- define "graceful.waysOut" -}}
{{- $env := dict -}}
{{- with .Values.proxy.https }}{{ $_ := set $env "HTTPS_PROXY" . }}{{ end -}}
{{- with .Values.proxy.http }}{{ $_ := set $env "HTTP_PROXY" . }}{{ end -}}
{{- if $env -}}
{{- $direct := list "localhost" "127.0.0.1" ".svc" ".cluster.local" "$(KUBERNETES_SERVICE_HOST)" -}}
{{- $_ := set $env "NO_PROXY" (concat $direct .Values.proxy.direct | join ",") -}}
{{- end -}}
{{- if .Values.caBundle.configMap -}}
{{- range list "SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" "AWS_CA_BUNDLE" "CURL_CA_BUNDLE" -}}
{{- $_ := set $env . (printf "/etc/graceful-ca/%s" $.Values.caBundle.key) -}}
{{- end -}}
{{- end -}}
{{- toYaml $env -}}
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
{{- with include "graceful.proxy" $root | fromYaml }}{{ $_ := set $known "proxy" . }}{{ end -}}
{{- with $values.caBundle.configMap }}{{ $_ := set $known "ca_bundle" (dict "config_map" . "key" $values.caBundle.key) }}{{ end -}}
{{- $pods := dict -}}
{{- with $values.pods.labels }}{{ $_ := set $pods "labels" . }}{{ end -}}
{{- with $values.pods.annotations }}{{ $_ := set $pods "annotations" . }}{{ end -}}
{{- with $pods }}{{ $_ := set $known "pods" . }}{{ end -}}
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

{{/* A container of a scheduled pod; only one that computes or cleans a bucket gets connections and credentials.
     Argument: dict root, schedule, command (submit, refresh or gc), name, arguments. */}}
{{- define "graceful.scheduled" -}}
{{- $values := .root.Values -}}
{{- $env := include "graceful.waysOut" .root | fromYaml -}}
{{- $secrets := list -}}
{{- if ne .command "submit" -}}
{{- $env = mergeOverwrite $env (include "graceful.environment" .root | fromYaml) -}}
{{- $_ := set $env "GRACEFUL_HOME" $values.storage.path -}}
{{- with $values.storage.uri }}{{ $_ := set $env "GRACEFUL_STORAGE" . }}{{ end -}}
{{- with $values.mlflow.uri }}{{ $_ := set $env "MLFLOW_TRACKING_URI" . }}{{ end -}}
{{- $secrets = compact (list $values.mlflow.secretName $values.s3.secretName) -}}
{{- end -}}
{{- if kindIs "invalid" $values.podSecurity.user }}{{ $_ := set $env "USER" "ray" }}{{ end -}}
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
    {{- range $key, $value := mergeOverwrite $env (deepCopy $values.scheduled.env) (deepCopy (.schedule.env | default dict)) }}
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
    {{- .schedule.resources | default (index $values.scheduled (printf "%sResources" (ternary "refresh" "submit" (eq .command "refresh")))) | toYaml | nindent 4 }}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: home, mountPath: /home/ray}
    {{- if ne .command "gc" }}
    - {name: job, mountPath: /etc/graceful/job, readOnly: true}
    {{- end }}
    {{- if ne .command "refresh" }}
    - {name: profiles, mountPath: /etc/graceful/profiles, readOnly: true}
    {{- end }}
    {{- if ne .command "submit" }}
    - {name: runs, mountPath: {{ $values.storage.path }}}
    {{- end }}
    {{- if eq .command "refresh" }}
    - {name: shared-memory, mountPath: /dev/shm}
    {{- end }}
    {{- if $values.caBundle.configMap }}
    - {name: trusted-certificates, mountPath: /etc/graceful-ca, readOnly: true}
    {{- end }}
    {{- with $values.scheduled.volumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* What all scheduled pods have in common. Argument: dict root, schedule, command, job (Secret that is mounted). */}}
{{- define "graceful.scheduledPod" -}}
{{- $values := .root.Values -}}
{{- $refresh := eq .command "refresh" -}}
restartPolicy: Never
serviceAccountName: {{ include "graceful.account" (dict "root" .root "part" (ternary "ray" "submitter" $refresh)) }}
automountServiceAccountToken: {{ not $refresh }}
terminationGracePeriodSeconds: {{ $values.scheduled.gracePeriodSeconds }}
{{- with $values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .schedule.nodeSelector | default $values.scheduled.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .schedule.tolerations | default $values.scheduled.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.scheduled.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  {{- with $values.podSecurity.user }}
  runAsUser: {{ . }}
  runAsGroup: {{ . }}
  fsGroup: {{ . }}
  {{- end }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
volumes:
  - {name: tmp, emptyDir: {}}
  - {name: home, emptyDir: {}}
  {{- with .job }}
  - {name: job, secret: {secretName: {{ . }}}}
  {{- end }}
  {{- if not $refresh }}
  - {name: profiles, secret: {secretName: {{ include "graceful.prefix" .root }}-profiles}}
  {{- end }}
  {{- if ne .command "submit" }}
  {{- if $values.storage.claim }}
  - {name: runs, persistentVolumeClaim: {claimName: {{ $values.storage.claim }}}}
  {{- else }}
  - {name: runs, emptyDir: {}}
  {{- end }}
  {{- end }}
  {{- if $refresh }}
  - {name: shared-memory, emptyDir: {medium: Memory, sizeLimit: {{ $values.scheduled.sharedMemory }}}}
  {{- end }}
  {{- with $values.caBundle.configMap }}
  - {name: trusted-certificates, configMap: {name: {{ . }}}}
  {{- end }}
{{- end -}}

{{/* The template of a scheduled pod with what `scheduled.spec` says merged in: maps by key, volumes and init containers
     are added, other lists replace ours. Argument: dict root, schedule, command, job, labels, init, containers. */}}
{{- define "graceful.scheduledTemplate" -}}
{{- $values := .root.Values -}}
{{- $spec := include "graceful.scheduledPod" . | fromYaml -}}
{{- $extra := deepCopy $values.scheduled.spec -}}
{{- $volumes := concat $spec.volumes ($extra.volumes | default list) -}}
{{- $init := concat ($extra.initContainers | default list) (.init | default list) -}}
{{- $spec = mergeOverwrite $spec $extra (dict "containers" .containers "volumes" $volumes) -}}
{{- if $init }}{{ $_ := set $spec "initContainers" $init }}{{ else }}{{ $_ := unset $spec "initContainers" }}{{ end -}}
{{- $metadata := dict "labels" (mergeOverwrite (deepCopy $values.pods.labels) (deepCopy $values.scheduled.labels) .labels) -}}
{{- with mergeOverwrite (deepCopy $values.pods.annotations) (deepCopy $values.scheduled.annotations) }}{{ $_ := set $metadata "annotations" . }}{{ end -}}
{{- toYaml (dict "metadata" $metadata "spec" $spec) -}}
{{- end -}}

{{/* What CronJobs of ours have in common. Argument: dict root. */}}
{{- define "graceful.podFailurePolicy" -}}
rules:
  - action: Ignore
    onPodConditions: [{type: DisruptionTarget, status: "True"}]
  - action: FailJob # a bug, a wrong spec, held by the gate, training failed: trying again changes nothing
    onExitCodes: {operator: In, values: [1, 2, 3, 5]}
{{- end -}}

{{/* A subject of a RoleBinding: a user, a group, or a ServiceAccount of this or another namespace. */}}
{{- define "graceful.subject" -}}
{{- if eq .subject.kind "ServiceAccount" -}}
- {kind: ServiceAccount, name: {{ .subject.name }}, namespace: {{ .subject.namespace | default .root.Release.Namespace }}}
{{- else -}}
- {kind: {{ .subject.kind }}, name: {{ .subject.name | quote }}, apiGroup: rbac.authorization.k8s.io}
{{- end -}}
{{- end -}}

{{/* Under which name people keep a profile: that of the namespace, with the profile's unless it is `default`. */}}
{{- define "graceful.profileName" -}}
{{- if eq .name "default" -}}{{ .root.Release.Namespace }}{{- else -}}{{ .root.Release.Namespace }}-{{ .name }}{{- end -}}
{{- end -}}
