//! Folders and files in; what was read of them out.

use std::fs;
use std::path::Path;

use crate::manifests::load;

fn write(root: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        fs::write(path, text).expect("written");
    }
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

#[test]
fn folders_are_read_in_all_their_depth_without_what_editors_leave() {
    let root = tempfile::tempdir().expect("a folder");
    let text = |name: &str| namespace(name);
    let broken = "][";
    write(
        root.path(),
        &[
            ("a.yaml", &text("a")),
            ("b/c.yml", &text("b")),
            (
                "b/d/e.json",
                "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"c\"}}",
            ),
            (".hidden.yaml", broken),
            (".git/x.yaml", broken),
            ("a.yaml~", broken),
            (".a.yaml.swp", broken),
            ("#a.yaml#", broken),
            ("README.md", broken),
        ],
    );
    std::os::unix::fs::symlink("..", root.path().join("b/loop")).expect("linked");
    std::os::unix::fs::symlink("nowhere", root.path().join("b/dangling")).expect("linked");
    let paths = [
        root.path().to_owned(),
        root.path().join("a.yaml"),
        root.path().join("b"),
    ];
    let loaded = load(&paths).unwrap_or_else(|e| panic!("{e}"));
    let names: Vec<&str> = loaded.cluster.namespaces.keys().map(|n| &**n).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[test]
fn the_folder_of_a_config_map_is_read() {
    let root = tempfile::tempdir().expect("a folder");
    write(root.path(), &[("..2026_01_01/a.yaml", &namespace("a"))]);
    std::os::unix::fs::symlink("..2026_01_01", root.path().join("..data")).expect("linked");
    std::os::unix::fs::symlink("..data/a.yaml", root.path().join("a.yaml")).expect("linked");
    let loaded = load(&[root.path().to_owned()]).unwrap_or_else(|e| panic!("{e}"));
    let source = loaded.sources.values().next().expect("one object");
    assert_eq!(source.to_string(), format!("{}/a.yaml:1:1", root.path().display()));
}

#[test]
fn files_that_cannot_be_read_are_each_reported() {
    let root = tempfile::tempdir().expect("a folder");
    let at = |name: &str| root.path().join(name);
    fs::write(at("latin1.yaml"), b"apiVersion: v1\nkind: \xe9\n").expect("written");
    std::os::unix::fs::symlink("nowhere", at("link.yaml")).expect("linked");
    fs::create_dir(at("empty")).expect("created");
    let errors = load(&[at(""), at("missing.yaml"), at("empty")])
        .expect_err("two are broken")
        .to_string();
    let errors = errors.replace(&format!("{}/", root.path().display()), "");
    assert_eq!(
        errors,
        "latin1.yaml: not UTF-8 text in line 2: save it as UTF-8\n\
         link.yaml: there is no such file or folder: check the path\n\
         missing.yaml: there is no such file or folder: check the path\n3 errors"
    );
    let warnings = load(&[at("empty")]).expect("nothing is wrong with it").warnings;
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0]
            .to_string()
            .ends_with("empty: no manifest is in this folder: they are named *.yaml, *.yml or *.json [empty-folder]")
    );
}
