//! The vocabulary of a realistic cluster: what workloads are for, and who runs them.

/// The namespaces of what every cluster runs beside its teams' work.
pub(super) const SYSTEM: [&str; 3] = ["kube-system", "monitoring", "ingress-nginx"];

/// Teams; of more than these, each has several namesakes by number.
pub(super) const TEAMS: [&str; 16] = [
    "checkout", "search", "billing", "catalog", "identity", "shipping", "pricing", "reviews", "media", "fraud", "mail",
    "loyalty", "support", "returns", "ads", "stock",
];

/// How a workload names, places and replaces its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Deployment,
    StatefulSet,
    DaemonSet,
    Job,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Deployment => "deployment",
            Kind::StatefulSet => "statefulset",
            Kind::DaemonSet => "daemonset",
            Kind::Job => "job",
        }
    }
}

/// What a workload is for: its name, its tier, and the ports of its pods.
pub(super) struct Role {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) tier: &'static str,
    /// Name and the numbers that different workloads choose from.
    pub(super) ports: &'static [(&'static str, &'static [u16])],
    pub(super) replicas: &'static [usize],
}

const METRICS: (&str, &[u16]) = ("metrics", &[9090, 9102, 8081]);

/// The roles of a team's workloads, each namespace beginning with the first ones.
pub(super) const ROLES: [Role; 7] = [
    Role {
        name: "web",
        kind: Kind::Deployment,
        tier: "frontend",
        ports: &[("http", &[8080, 8000, 3000]), METRICS],
        replicas: &[2, 3, 3, 6, 12],
    },
    Role {
        name: "api",
        kind: Kind::Deployment,
        tier: "backend",
        ports: &[("http", &[8080, 8000]), ("grpc", &[9000, 50051]), METRICS],
        replicas: &[2, 3, 3, 5, 10, 20],
    },
    Role {
        name: "db",
        kind: Kind::StatefulSet,
        tier: "data",
        ports: &[("postgres", &[5432]), METRICS],
        replicas: &[1, 2, 3],
    },
    Role {
        name: "worker",
        kind: Kind::Deployment,
        tier: "backend",
        ports: &[METRICS],
        replicas: &[1, 2, 4, 8, 16],
    },
    Role {
        name: "cache",
        kind: Kind::StatefulSet,
        tier: "data",
        ports: &[("redis", &[6379])],
        replicas: &[1, 3],
    },
    Role {
        name: "queue",
        kind: Kind::StatefulSet,
        tier: "data",
        ports: &[("amqp", &[5672]), ("management", &[15672]), METRICS],
        replicas: &[1, 3],
    },
    Role {
        name: "report",
        kind: Kind::Job,
        tier: "batch",
        ports: &[],
        replicas: &[1, 2],
    },
];
