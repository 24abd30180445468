//! The order of the house: which room may know which, read from the imports of the sources.
//!
//! ```text
//!   rooms      folders and files right below `src`; each group of ORDER knows only those before it
//!   files      no circle, neither between rooms nor inside one
//! ```
//!
//! A path is resolved to the file that defines what it names: through modules, and through what their files re-export. A re-export is no import of its
//! own. Code under `#[cfg(test)]` may look anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The rooms of the library from the ground up.
const ORDER: &[&[&str]] = &[
    &["compiled", "dtype"],
    &["error"],
    &["parallel"],
    &["tensor"],
    &["rng", "rank", "simd"],
    &["fwht"],
    &["rotation"],
    &["linalg"],
    &["sketch", "qr"],
    &["small"],
    &["space"],
    &["operator"],
    &["range"],
    &["calibration"],
    &["report"],
    &["factors"],
    &["quality"],
    &["cuda", "mpi"],
    &["svd"],
    &["batch"],
    &["npy"],
    &["npz"],
    &["capi"],
];

/// Sources by their path below `src`.
type Sources = BTreeMap<String, String>;

/// The sources below a folder, without those whose path begins with `without`.
fn sources(folder: &Path, without: Option<&str>) -> Sources {
    fn walk(folder: &Path, prefix: &str, sources: &mut Sources) {
        for entry in std::fs::read_dir(folder).expect("a readable folder") {
            let entry = entry.expect("a readable folder");
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type().expect("a type").is_dir() {
                walk(&entry.path(), &format!("{name}/"), sources);
            } else if name.ends_with(".rs") {
                sources.insert(name, std::fs::read_to_string(entry.path()).expect("a readable source"));
            }
        }
    }
    let mut sources = Sources::new();
    walk(folder, "", &mut sources);
    sources.retain(|name, _| without.is_none_or(|without| !name.starts_with(without)));
    sources
}

/// The code of a source: no comments, no text, no tests.
fn code_of(source: &str) -> String {
    let mut code = String::new();
    for line in source.lines() {
        let line = line.split("//").next().unwrap_or("");
        // Text between quotes; a quote as a character is none.
        let line = line.replace("'\"'", "").replace("\\\"", "");
        code.extend(line.split('"').step_by(2).flat_map(|part| [part, " "]));
        code.push('\n');
    }
    while let Some(start) = code.find("#[cfg(test)]") {
        let body = start + code[start..].find('{').expect("a test module has a body");
        // `mod tests;` would end before.
        let semicolon = code[start..].find(';').map_or(usize::MAX, |at| start + at);
        if semicolon < body {
            code.replace_range(start..=semicolon, "");
            continue;
        }
        let mut depth = 0;
        let length = code[body..].find(|c| {
            depth += match c {
                '{' => 1,
                '}' => -1,
                _ => 0,
            };
            depth == 0
        });
        code.replace_range(start..=body + length.expect("braces match"), "");
    }
    code
}

/// A name in scope, and the path that it stands for.
struct Import {
    path: Vec<String>,
    name: String,
    public: bool,
}

/// Takes a `use` tree apart.
fn flatten(tree: &str, prefix: &[String], public: bool, imports: &mut Vec<Import>) {
    let tree = tree.trim();
    match tree.find('{') {
        None => {
            let (path, name) = tree.split_once(" as ").unwrap_or((tree, ""));
            let mut path: Vec<String> =
                prefix.iter().cloned().chain(path.split("::").map(|part| part.trim().to_owned())).collect();
            if path.last().is_some_and(|part| part == "self") {
                path.pop();
            }
            let name = if name.is_empty() { path.last().cloned().unwrap_or_default() } else { name.trim().to_owned() };
            imports.push(Import { path, name, public });
        }
        Some(brace) => {
            let head = tree[..brace].trim().trim_end_matches("::");
            let prefix: Vec<String> = prefix
                .iter()
                .cloned()
                .chain(head.split("::").filter(|part| !part.is_empty()).map(str::to_owned))
                .collect();
            let inner = &tree[brace + 1..tree.rfind('}').expect("braces match")];
            let (mut depth, mut start) = (0, 0);
            for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        if !inner[start..at].trim().is_empty() {
                            flatten(&inner[start..at], &prefix, public, imports);
                        }
                        start = at + 1;
                    }
                    _ => {}
                }
            }
        }
    }
}

/// One file as the checker sees it.
struct File {
    module: Vec<String>,
    imports: Vec<Import>,
    /// Paths in the code besides imports.
    paths: Vec<Vec<String>>,
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn read(name: &str, source: &str) -> File {
    let mut module: Vec<String> = name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        module.pop();
    }
    let code = code_of(source);
    let (mut imports, mut paths) = (Vec::new(), Vec::new());
    let mut rest = String::new();
    let mut text = code.as_str();
    while let Some(at) = text.find("use ") {
        let before = &text[..at];
        let line = before.rsplit(['\n', ';', '{', '}']).next().unwrap_or("").trim();
        let starts = line.is_empty() || line.starts_with("pub") || line.ends_with(']');
        if !starts {
            rest.push_str(&text[..at + 4]);
            text = &text[at + 4..];
            continue;
        }
        rest.push_str(before);
        let end = at + text[at..].find(';').expect("an import ends");
        flatten(&text[at + 4..end], &[], line.contains("pub"), &mut imports);
        text = &text[end + 1..];
    }
    rest.push_str(text);
    for (at, _) in rest.match_indices("::") {
        let head = rest[..at].rsplit(|c: char| !is_word(c)).next().unwrap_or("");
        let before = &rest[..at - head.len()];
        // A path that begins further left, or says who may see an item.
        if head.is_empty() || before.ends_with("::") || before.ends_with("(in ") {
            continue;
        }
        let mut path = vec![head.to_owned()];
        let mut tail = &rest[at..];
        while let Some(after) = tail.strip_prefix("::") {
            let part: String = after.chars().take_while(|&c| is_word(c)).collect();
            if part.is_empty() {
                break;
            }
            tail = &after[part.len()..];
            path.push(part);
        }
        paths.push(path);
    }
    File { module, imports, paths }
}

/// The imports of each file: the files that define what it names.
fn arrows(sources: &Sources) -> BTreeMap<String, BTreeSet<String>> {
    let files: BTreeMap<&String, File> = sources.iter().map(|(name, source)| (name, read(name, source))).collect();
    let modules: BTreeMap<&[String], &String> = files.iter().map(|(name, file)| (&file.module[..], *name)).collect();
    // A path as modules from the root, if it begins in this crate.
    let absolute = |file: &File, path: &[String]| -> Option<Vec<String>> {
        let mut base = match path.first()?.as_str() {
            "crate" => Vec::new(),
            "self" => file.module.clone(),
            "super" => file.module[..file.module.len().checked_sub(1)?].to_vec(),
            child => {
                let mut below = file.module.clone();
                below.push(child.to_owned());
                modules.contains_key(&below[..]).then(|| file.module.clone())?
            }
        };
        let mut path = if ["crate", "self", "super"].contains(&path[0].as_str()) { &path[1..] } else { path };
        while path.first().is_some_and(|part| part == "super") {
            base.pop();
            path = &path[1..];
        }
        base.extend(path.iter().cloned());
        Some(base)
    };
    // The file that defines the end of a path.
    let define = |path: Vec<String>| -> Option<&String> {
        let mut path = path;
        for _ in 0..8 {
            let depth = (0..=path.len()).rev().find(|&depth| modules.contains_key(&path[..depth]))?;
            let owner = modules[&path[..depth]];
            let Some(name) = path.get(depth) else { return Some(owner) };
            let file = &files[owner];
            let again = file.imports.iter().find(|import| import.public && import.name == *name);
            match again.and_then(|import| absolute(file, &import.path)) {
                Some(mut next) => {
                    next.extend(path[depth + 1..].iter().cloned());
                    path = next;
                }
                None => return Some(owner),
            }
        }
        None
    };
    let mut arrows = BTreeMap::new();
    for (name, file) in &files {
        let mut to = BTreeSet::new();
        let mut aliases: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for import in &file.imports {
            let Some(path) = absolute(file, &import.path) else { continue };
            if modules.contains_key(&path[..]) {
                aliases.insert(&import.name, path);
            } else if !import.public || path.first() != file.module.first() {
                to.extend(define(path));
            }
        }
        for path in &file.paths {
            let whole = match aliases.get(path[0].as_str()) {
                Some(module) => Some(module.iter().chain(&path[1..]).cloned().collect()),
                None => absolute(file, path),
            };
            to.extend(whole.and_then(define));
        }
        to.remove(*name);
        arrows.insert((*name).clone(), to.into_iter().cloned().collect());
    }
    arrows
}

/// The room of a file.
fn room(file: &str) -> &str {
    file.split(['/', '.']).next().expect("a name")
}

/// Imports that do not go down.
fn upward(arrows: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let floor = |file: &str| ORDER.iter().position(|rooms| rooms.contains(&room(file)));
    let mut found = Vec::new();
    for (from, to) in arrows.iter().filter(|(from, _)| *from != "lib.rs") {
        let Some(here) = floor(from) else {
            found.push(format!("{from}: a room that the order does not know"));
            continue;
        };
        for file in to.iter().filter(|file| room(file) != room(from)) {
            if floor(file).is_none_or(|there| there >= here) {
                found.push(format!("{from} -> {file}"));
            }
        }
    }
    found
}

/// Files that know each other, by whatever way round.
fn circles(arrows: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let reach = |from: &String| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(file) = open.pop() {
            for next in arrows.get(&file).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    open.push(next.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<String>> = arrows.keys().map(|file| (file, reach(file))).collect();
    let mut found: Vec<Vec<String>> = Vec::new();
    for (file, to) in &reached {
        if to.contains(*file) && !found.iter().any(|circle| circle.contains(file)) {
            found.push(to.iter().filter(|other| reached[other].contains(*file)).cloned().collect());
        }
    }
    found
}

fn library() -> Sources {
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), Some("bin/"))
}

#[test]
fn each_room_knows_only_rooms_below_it() {
    let found = upward(&arrows(&library()));
    assert!(found.is_empty(), "imports that go up:\n{}", found.join("\n"));
}

#[test]
fn no_files_know_each_other_in_a_circle() {
    let binary = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/tensorslim"), None);
    for sources in [library(), binary] {
        let arrows = arrows(&sources);
        let ties = |circle: &Vec<String>| {
            let within = |file: &String| {
                let to: Vec<&String> = arrows[file].iter().filter(|to| circle.contains(to)).collect();
                format!("  {file} -> {to:?}")
            };
            circle.iter().map(within).collect::<Vec<_>>().join("\n")
        };
        let found: Vec<String> = circles(&arrows).iter().map(ties).collect();
        assert!(found.is_empty(), "circles:\n{}", found.join("\n\n"));
    }
}

/// What is planted into the real sources is found, whichever way it is written.
#[test]
fn planted_imports_are_found() {
    let plant = |file: &str, line: &str| {
        let mut sources = library();
        sources.get_mut(file).unwrap_or_else(|| panic!("{file} is there")).insert_str(0, line);
        arrows(&sources)
    };
    let ups = [
        ("rng.rs", "use crate::svd::TruncatedSvd;\n", "rng.rs -> svd/mod.rs"),
        ("qr/tsqr.rs", "use crate::{error::Error, factors::{Factors as F}};\n", "qr/tsqr.rs -> factors.rs"),
        ("sketch/srht.rs", "fn f() -> super::super::quality::X { }\n", "sketch/srht.rs -> quality.rs"),
        ("rank.rs", "pub use crate::svd::Method;\n", "rank.rs -> svd/mod.rs"),
        // Through a re-export of the room.
        ("tensor.rs", "use crate::qr;\nfn f() { qr::tsqr::r(); }\n", "tensor.rs -> qr/tsqr.rs"),
    ];
    for (file, line, arrow) in ups {
        let found = upward(&plant(file, line));
        assert!(found.iter().any(|found| found == arrow), "{line} in {file}: {found:?}");
    }
    let circle = circles(&plant("svd/task.rs", "use super::plan::Plan;\n"));
    assert!(circle.iter().any(|c| c.contains(&"svd/task.rs".to_owned())), "{circle:?}");
    // In text, in comments and in tests nothing is imported.
    let silent =
        "// use crate::svd::A;\nconst A: &str = \"crate::svd::A\";\n#[cfg(test)]\nmod t { use crate::svd::A; }\n";
    let before = upward(&arrows(&library()));
    assert_eq!(upward(&plant("rng.rs", silent)), before);
}
