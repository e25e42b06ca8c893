//! `palisade lint`: a loaded and compiled cluster in, findings with their places out, without those that somebody has ruled out.

use std::collections::{BTreeMap, BTreeSet};

use policy_compiler::convert::{FieldPath, Path};
use policy_compiler::diagnostics::{Code, Diagnostic, ObjectName, Severity};
use policy_compiler::labels::Name;
use policy_compiler::lint::lint;

use super::ends::Compiled;
use crate::manifests::{LINT_IGNORE_ANNOTATION, Loaded, Problem, Source};

/// Which findings are told.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    /// Of these sorts; of all when it is empty.
    pub(crate) only: Vec<Code>,
    /// Of none of these sorts.
    pub(crate) ignore: Vec<Code>,
    /// That matter as much as this at least.
    pub(crate) least: Severity,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Where; none in a live cluster.
    pub(crate) source: Option<Source>,
    pub(crate) severity: Severity,
    pub(crate) code: Code,
    /// The object; none when a file as a whole is meant.
    pub(crate) object: Option<ObjectName>,
    pub(crate) field: Option<FieldPath>,
    pub(crate) message: String,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    /// Sorted by place; those without one at the end.
    pub(crate) told: Vec<Finding>,
    /// How many the annotations of their objects rule out.
    pub(crate) ignored: usize,
}

impl Finding {
    /// What is said of it: `NetworkPolicy shop/db: spec.egress[0]: …`.
    pub(crate) fn sentence(&self) -> String {
        let object = self.object.iter().map(|o| format!("{o}: "));
        let field = self.field.iter().map(|f| format!("{f}: "));
        let mut text: String = object.chain(field).collect();
        text.push_str(&self.message);
        text
    }
}

impl Findings {
    /// How many there are of a severity.
    pub(crate) fn count(&self, severity: Severity) -> usize {
        self.told.iter().filter(|f| f.severity == severity).count()
    }
}

/// Everything that is to be told about a cluster.
pub(crate) fn findings(loaded: &Loaded, compiled: &Compiled, filter: &Filter) -> Findings {
    let ignored = ignored(loaded);
    let first = first_in_namespaces(loaded);
    let found = loaded.warnings.iter().filter_map(of_warning);
    let found = found.chain(unknown_rules(loaded));
    let diagnostics = lint(&compiled.cluster, &compiled.table).into_iter();
    let found = found.chain(diagnostics.map(|diagnostic| of_diagnostic(loaded, &first, diagnostic)));
    let (mut told, mut ruled_out) = (Vec::new(), 0);
    for finding in found {
        let Filter { only, ignore, least } = filter;
        let wanted = only.is_empty() || only.contains(&finding.code);
        if !wanted || ignore.contains(&finding.code) || finding.severity > *least {
            continue;
        }
        let object = finding.object.as_ref().map(|o| loaded.given(o));
        if object.is_some_and(|object| ignored.contains(&(object, finding.code))) {
            ruled_out += 1;
        } else {
            told.push(finding);
        }
    }
    let place = |f: &Finding| {
        (
            f.source.is_none(),
            f.source.clone(),
            f.severity,
            f.code,
            f.object.clone(),
        )
    };
    told.sort_by_cached_key(|f| (place(f), f.field.clone(), f.message.clone()));
    Findings {
        told,
        ignored: ruled_out,
    }
}

/// What was odd when the manifests were read.
fn of_warning(warning: &Problem) -> Option<Finding> {
    let code = warning.code?;
    // That of a live cluster names its server.
    let is_of_files = matches!(code, Code::EmptyFolder | Code::NothingOfUse);
    let is_live = warning.source.position.is_none() && !is_of_files;
    Some(Finding {
        source: (!is_live).then(|| warning.source.clone()),
        severity: code.severity(),
        code,
        object: warning.object.clone(),
        field: warning.path.clone().filter(|path| !path.is_root()),
        message: warning.message.clone(),
    })
}

fn of_diagnostic(loaded: &Loaded, first: &BTreeMap<&Name, &Source>, diagnostic: Diagnostic) -> Finding {
    let Diagnostic {
        severity,
        code,
        object,
        field,
        message,
    } = diagnostic;
    // A namespace that is not given is where the first of its objects is.
    let in_namespace = || first.get(&object.name).filter(|_| &*object.kind == "Namespace");
    let source = loaded.place(&object, &field);
    Finding {
        source: source.or_else(|| in_namespace().map(|source| (*source).clone())),
        severity,
        code,
        object: Some(object),
        field: (!field.is_root()).then_some(field),
        message,
    }
}

fn first_in_namespaces(loaded: &Loaded) -> BTreeMap<&Name, &Source> {
    let mut first: BTreeMap<&Name, &Source> = BTreeMap::new();
    for (object, source) in &loaded.sources {
        if let Some(namespace) = &object.namespace {
            let known = first.entry(namespace).or_insert(source);
            *known = source.min(*known);
        }
    }
    first
}

/// The words of the annotation of an object.
fn words(rules: &str) -> impl Iterator<Item = &str> {
    rules.split(',').map(str::trim).filter(|word| !word.is_empty())
}

/// What the annotations rule out.
fn ignored(loaded: &Loaded) -> BTreeSet<(ObjectName, Code)> {
    let rules = loaded.lint_ignore.iter().flat_map(|(object, rules)| {
        let codes = words(rules).filter_map(|word| word.parse::<Code>().ok());
        codes.map(move |code| (object.clone(), code))
    });
    rules.collect()
}

/// Annotations that rule out what there is not.
fn unknown_rules(loaded: &Loaded) -> impl Iterator<Item = Finding> {
    let metadata = Path::Root.field("metadata");
    let field = metadata
        .field("annotations")
        .key(LINT_IGNORE_ANNOTATION)
        .to_field_path();
    loaded.lint_ignore.iter().flat_map(move |(object, rules)| {
        let unknown = words(rules).filter_map(|word| parse_code(word).err());
        let field = field.clone();
        unknown.map(move |message| Finding {
            source: loaded.place(object, &field),
            severity: Code::UnknownLintRule.severity(),
            code: Code::UnknownLintRule,
            object: Some(object.clone()),
            field: Some(field.clone()),
            message,
        })
    })
}

/// What `palisade lint --help` ends with.
pub(crate) fn help() -> String {
    let rules: Vec<&str> = Code::all().map(Code::id).collect();
    format!(
        "Warnings end with exit code 1, notes do not. The annotation palisade.dev/lint-ignore of an object, with rules separated by \
         commas, rules out findings about that object.\nA RULE is the name that stands behind a finding: {}.",
        rules.join(", ")
    )
}

/// The rule of a name.
pub(crate) fn parse_code(text: &str) -> Result<Code, String> {
    text.parse().map_err(|()| {
        let near = crate::manifests::nearest(text, Code::all().map(Code::id));
        let hint = near.map_or_else(
            || "`palisade lint --help` lists them".to_owned(),
            |near| format!("did you mean {near}?"),
        );
        format!("\"{text:.80}\" is not a rule: {hint}")
    })
}
