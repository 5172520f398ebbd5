{{/* What the names of all objects begin with: the release's name, with -agent at its end. */}}
{{- define "agent.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- printf "%s-agent" (trimSuffix "-agent" .Release.Name) -}}
{{- end -}}
{{- end -}}

{{/* Objects outside of namespaces: the namespace is in the name, so that two releases of one name do not meet. */}}
{{- define "agent.clustername" -}}
{{- printf "%s:%s" .Release.Namespace (include "agent.fullname" .) -}}
{{- end -}}

{{- define "agent.leaseName" -}}
{{- .Values.leaseName | default (include "agent.fullname" .) -}}
{{- end -}}

{{- define "agent.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "agent.fullname" .) -}}
{{- end -}}

{{- define "agent.secretName" -}}
{{- .Values.existingSecret | default (printf "%s-token" (include "agent.fullname" .)) -}}
{{- end -}}

{{- define "agent.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "agent.labels" -}}
{{ include "agent.selector" . }}
app.kubernetes.io/part-of: incident-rca
app.kubernetes.io/version: {{ .Chart.AppVersion | replace "+" "_" | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "agent.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default (.Chart.AppVersion | replace "+" "-")) -}}
{{- end -}}
{{- end -}}

{{- define "agent.pullPolicy" -}}
{{- .Values.image.pullPolicy | default (ternary "Never" "IfNotPresent" (eq .Values.image.repository "incident-rca/agent")) -}}
{{- end -}}

{{/* The features that are on, separated by commas; a lone comma where none is. */}}
{{- define "agent.features" -}}
{{- $on := list -}}
{{- range $name := list "workloads" "quotas" "storage" "autoscaling" "disruption_budgets" "configmaps" "rbac" "events" "secrets" -}}
{{- if index $.Values.features $name -}}{{- $on = append $on $name -}}{{- end -}}
{{- end -}}
{{- join "," $on | default "," -}}
{{- end -}}

{{/* An option's value as text. YAML's numbers reach templates as floating point, which prints large ones with an exponent. */}}
{{- define "agent.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{ int64 . }}{{- else -}}{{ toString . }}{{- end -}}
{{- end -}}

{{- define "agent.stateDir" -}}
{{- get .Values.config "state_dir" | default "/var/lib/incident-rca" -}}
{{- end -}}

{{- define "agent.hasCaBundle" -}}
{{- if or .Values.caBundle.pem .Values.caBundle.configMap .Values.caBundle.secret -}}true{{- end -}}
{{- end -}}

{{- define "agent.caVolume" -}}
{{- $items := list (dict "key" .Values.caBundle.key "path" "ca.crt") -}}
{{- if .Values.caBundle.secret -}}
secret:
  secretName: {{ .Values.caBundle.secret }}
  items: {{ toYaml $items | nindent 4 }}
{{- else -}}
configMap:
  name: {{ .Values.caBundle.configMap | default (printf "%s-ca" (include "agent.fullname" .)) }}
  items: {{ toYaml (ternary (list (dict "key" "ca.crt" "path" "ca.crt")) $items (empty .Values.caBundle.configMap)) | nindent 4 }}
{{- end -}}
{{- end -}}

{{/* Annotations of pods: a changed token or authority of the chart's own starts the pods anew. */}}
{{- define "agent.podAnnotations" -}}
{{- if not .Values.existingSecret }}
checksum/token: {{ include (print $.Template.BasePath "/secret.yaml") . | sha256sum }}
{{- end }}
{{- if .Values.caBundle.pem }}
checksum/ca: {{ sha256sum .Values.caBundle.pem }}
{{- end }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The pod of either view. Takes root, view, component and what differs: account, resources and placement. */}}
{{- define "agent.pod" -}}
{{- $ := .root -}}
{{- $values := $.Values -}}
metadata:
  labels:
    {{- include "agent.selector" $ | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
    {{- with $values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with include "agent.podAnnotations" $ | trim }}
  annotations:
    {{- . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ .account }}
  automountServiceAccountToken: true
  # Services of the namespace must not look like options of the agent.
  enableServiceLinks: false
  terminationGracePeriodSeconds: 20
  {{- with $values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.podSecurityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: agent
      image: {{ include "agent.image" $ }}
      imagePullPolicy: {{ include "agent.pullPolicy" $ }}
      {{- with $values.securityContext }}
      securityContext:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      env:
        - {name: AGENT_TYPE, value: kubernetes}
        - {name: VIEW, value: {{ .view }}}
        - {name: PLATFORM_API_URL, value: {{ $values.platformUrl | trimSuffix "/" | replace "$(" "$$(" | quote }}}
        - {name: AGENT_TOKEN_FILE, value: /run/secrets/incident-rca/token}
        {{- if eq .view "cluster" }}
        - {name: FEATURES, value: {{ include "agent.features" $ | quote }}}
        - {name: LEASE_NAME, value: {{ include "agent.leaseName" $ | quote }}}
        {{- end }}
        {{- range $name, $path := dict "POD_UID" "metadata.uid" "POD_NAME" "metadata.name" "POD_NAMESPACE" "metadata.namespace" "NODE_NAME" "spec.nodeName" "NODE_IP" "status.hostIP" }}
        - {name: {{ $name }}, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: {{ $path }}}}}
        {{- end }}
        {{- with $values.proxy }}
        {{- with .http }}
        - {name: HTTP_PROXY, value: {{ . | quote }}}
        {{- end }}
        {{- with .https }}
        - {name: HTTPS_PROXY, value: {{ . | quote }}}
        {{- end }}
        {{- if or .http .https }}
        - {name: NO_PROXY, value: {{ printf "$(KUBERNETES_SERVICE_HOST),$(NODE_IP)%s" (.noProxy | empty | ternary "" (printf ",%s" .noProxy)) | quote }}}
        {{- end }}
        {{- end }}
        {{- if include "agent.hasCaBundle" $ }}
        - {name: CA_FILE, value: /etc/incident-rca/ca/ca.crt}
        {{- end }}
        {{- range $name, $value := $values.config }}
        - {name: {{ upper $name }}, value: {{ include "agent.text" $value | replace "$(" "$$(" | quote }}}
        {{- end }}
        {{- with $values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- if $values.probes.enabled }}
      startupProbe:
        exec: {command: [python, -m, connectors.core.probe, live]}
        periodSeconds: 3
        timeoutSeconds: {{ $values.probes.timeoutSeconds }}
        failureThreshold: 40
      livenessProbe:
        exec: {command: [python, -m, connectors.core.probe, live]}
        periodSeconds: {{ mul 6 $values.probes.periodSeconds }}
        timeoutSeconds: {{ $values.probes.timeoutSeconds }}
        failureThreshold: 3
      readinessProbe:
        exec: {command: [python, -m, connectors.core.probe, ready]}
        periodSeconds: {{ $values.probes.periodSeconds }}
        timeoutSeconds: {{ $values.probes.timeoutSeconds }}
        failureThreshold: 3
      {{- end }}
      {{- with .resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - {name: state, mountPath: {{ include "agent.stateDir" $ | quote }}}
        - {name: token, mountPath: /run/secrets/incident-rca, readOnly: true}
        {{- if include "agent.hasCaBundle" $ }}
        - {name: ca, mountPath: /etc/incident-rca/ca, readOnly: true}
        {{- end }}
  volumes:
    - name: state
      emptyDir:
        sizeLimit: {{ $values.state.sizeLimit }}
        {{- with $values.state.medium }}
        medium: {{ . }}
        {{- end }}
    - name: token
      secret:
        secretName: {{ include "agent.secretName" $ }}
        defaultMode: 0440
        items:
          - {key: {{ $values.existingSecret | empty | ternary "token" $values.existingSecretKey }}, path: token}
    {{- if include "agent.hasCaBundle" $ }}
    - name: ca
      {{- include "agent.caVolume" $ | nindent 6 }}
    {{- end }}
{{- end -}}
