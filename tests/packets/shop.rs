//! The cluster of the tests about connections, and the policies that they switch between.

/// Two nodes; `web`, `api` on the first, `db` on the second. Everybody listens on TCP 80 and UDP 53, and `shop/db` and
/// `shop/web` are behind Services of their own.
pub(crate) const CLUSTER: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  nodeName: a
  containers:
  - {name: main, image: i, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}, {containerPort: 90, protocol: SCTP}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api}}
spec:
  nodeName: a
  containers:
  - {name: main, image: i, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}, {containerPort: 90, protocol: SCTP}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec:
  nodeName: b
  containers:
  - {name: main, image: i, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}, {containerPort: 90, protocol: SCTP}]}
";

/// Services before `db` and `web`: with them, nodes track connections even where no policy is.
pub(crate) const SERVICES: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec:
  selector: {app: db}
  clusterIP: 10.96.0.5
  clusterIPs: [10.96.0.5, 'fd00:10:96::5']
  ports: [{port: 8000, targetPort: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  clusterIP: 10.96.0.6
  clusterIPs: [10.96.0.6, 'fd00:10:96::6']
  ports: [{port: 8000, targetPort: 80}]
";

/// No policy.
pub(crate) const NONE: &str = "kind: NetworkPolicyList\napiVersion: networking.k8s.io/v1\nitems: []\n";

/// Nobody reaches any pod, and no pod reaches anybody.
pub(crate) const DENY_ALL: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
";

/// Only `web` and `api` reach `db`, on TCP 80 and UDP 53; nothing else reaches anything: both ends are isolated both ways.
pub(crate) const ONLY_DB: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: to-db, namespace: shop}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [web, api]}]}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: db}}}]
    ports: [{port: 80}, {port: 53, protocol: UDP}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [web, api]}]}}]
    ports: [{port: 80}, {port: 53, protocol: UDP}]
";

/// Only `api` is reached, by `web`, which runs on the same node.
pub(crate) const ONLY_API: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: to-api, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: api}}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: api, namespace: shop}
spec:
  podSelector: {matchLabels: {app: api}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
";

/// Only the ingress of `db` is isolated, and admits `web` on TCP 80.
pub(crate) const DB_INGRESS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 80}, {port: 53, protocol: UDP}]
";

/// Only the egress of `web` is isolated, and admits `db` on TCP 80.
pub(crate) const WEB_EGRESS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: db}}}]
    ports: [{port: 80}, {port: 53, protocol: UDP}]
";
