//! What is compared: tables that are loaded side by side, of which one is awake at a time. A table that sleeps
//! (`flags dormant`) has no hook, so nothing but the table differs between two measurements.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use palisade::nft::{MarkMask, Marks, Renderer, Settings, replace};
use policy_compiler::cluster::Cluster;
use policy_compiler::compile::{Subjects, compile};

use crate::cluster::NODE;
use crate::rivals;
use crate::rivals::{Established, Layout};
use crate::world::World;

/// Connection tracking and nothing else: what the kernel needs to track is a rule that asks for it, and this one is in a
/// chain that no packet passes.
pub(crate) const TRACKED: &str =
    "add table inet tracked\nadd chain inet tracked asked\nadd rule inet tracked asked ct state new\n";

/// How a table is made.
#[derive(Clone, Debug)]
enum Encoding {
    /// None; connection tracking is there all the same.
    Tracked,
    /// The agent's own renderer; with marks as they are between two changes.
    Palisade(Settings),
    Rival(Layout, Established),
    /// A file of nft text that makes the table of this name.
    File(PathBuf),
}

/// One of the things that are compared.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    /// In reports.
    pub(crate) name: String,
    /// The name of the table.
    table: String,
    encoding: Encoding,
}

/// Everything that is compared, connection tracking alone first. A new way to render is one more line.
pub(crate) fn all(files: &[PathBuf]) -> Vec<Variant> {
    let variant = |name: &str, table: &str, encoding| Variant {
        name: name.to_owned(),
        table: table.to_owned(),
        encoding,
    };
    use Encoding::{Palisade, Rival, Tracked};
    use Established::{Accepted, Judged};
    use Layout::{ChainPerPolicy, RulePerSelector};
    let verified = Settings {
        verified: MarkMask::new(0xffff_0000).ok(),
        ..Settings::default()
    };
    let mut variants = vec![
        variant(BASELINE, "tracked", Tracked),
        variant(PALISADE, "palisade", Palisade(Settings::default())),
        variant(VERIFIED, "palisade_verified", Palisade(verified)),
        variant(CHAINS, "chains", Rival(ChainPerPolicy, Judged)),
        variant(RULES, "rules", Rival(RulePerSelector, Judged)),
        variant(
            "chain per policy, established accepted",
            "chains_accepted",
            Rival(ChainPerPolicy, Accepted),
        ),
        variant(
            "rule per selector, established accepted",
            "rules_accepted",
            Rival(RulePerSelector, Accepted),
        ),
    ];
    variants.extend(files.iter().map(|file| {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        variant(&stem, &stem, Encoding::File(file.clone()))
    }));
    variants
}

/// The variant that the others are compared with.
pub(crate) const BASELINE: &str = "conntrack only";
/// Palisade as it is by default.
pub(crate) const PALISADE: &str = "palisade";
/// Palisade with `--verified-mark`, when it is among the variants.
pub(crate) const VERIFIED: &str = "palisade, verified mark";
/// A rival.
pub(crate) const CHAINS: &str = "chain per policy";
/// A rival.
pub(crate) const RULES: &str = "rule per selector";

impl Variant {
    /// Whether it judges at all.
    pub(crate) fn judges(&self) -> bool {
        !matches!(self.encoding, Encoding::Tracked)
    }

    /// The table as nft text.
    fn text(&self, cluster: &Cluster) -> anyhow::Result<String> {
        Ok(match &self.encoding {
            Encoding::Tracked => TRACKED.to_owned(),
            Encoding::Palisade(settings) => {
                let table = compile(cluster, &Subjects::Node(NODE.into()));
                let mut renderer = Renderer::new(&table, *settings);
                if let Some(mask) = settings.marks() {
                    renderer.mark(Marks::Verified(mask, 1));
                }
                let transaction = replace(renderer.ruleset())?;
                // Under a name of its own, so that two renderings can be loaded at once.
                let text = transaction.to_string();
                text.replace("inet palisade", &format!("inet {}", self.table))
            }
            Encoding::Rival(layout, established) => rivals::render(cluster, &self.table, *layout, *established),
            Encoding::File(path) => std::fs::read_to_string(path)?,
        })
    }
}

/// The variants, loaded.
pub(crate) struct Loaded<'w> {
    world: &'w World,
    pub(crate) variants: Vec<Variant>,
    /// How long nft took for each.
    pub(crate) load_time: Vec<Duration>,
    awake: Option<usize>,
}

impl<'w> Loaded<'w> {
    /// Loads all; connection tracking alone is what is awake.
    pub(crate) fn new(
        world: &'w World,
        cluster: &Cluster,
        variants: Vec<Variant>,
        dump: Option<&Path>,
    ) -> anyhow::Result<Self> {
        world.node.nft("flush ruleset")?;
        let mut load_time = Vec::new();
        for variant in &variants {
            let text = variant.text(cluster)?;
            if let Some(folder) = dump {
                std::fs::create_dir_all(folder)?;
                std::fs::write(folder.join(format!("{}.nft", variant.table)), &text)?;
            }
            let begin = Instant::now();
            world.node.nft(&text)?;
            load_time.push(begin.elapsed());
            world.node.nft(&asleep(&variant.table))?;
        }
        Ok(Loaded {
            world,
            variants,
            load_time,
            awake: None,
        })
    }

    /// Lets one table have its hook, and no other.
    pub(crate) fn wake(&mut self, index: usize) -> anyhow::Result<()> {
        let mut text = self
            .awake
            .take()
            .map_or_else(String::new, |old| asleep(&self.variants[old].table));
        text += &format!("add table inet {}\n", self.variants[index].table);
        self.world.node.nft(&text)?;
        self.awake = Some(index);
        Ok(())
    }
}

fn asleep(table: &str) -> String {
    format!("add table inet {table} {{ flags dormant; }}\n")
}
