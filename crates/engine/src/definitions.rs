//! Definitions of agents as they lie in folders: a person's, and that of the repository in the
//! workspace of whoever summons. Read again each time.
//! Must not follow a link, must not read more than it says, and must not leave a file out in silence.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use dispatch_core::{
    config::list,
    definition::{
        self, Catalogue, Definition, FILE_BYTES_MAX, FILES_MAX, REPOSITORY_FOLDER, Role,
        SKILLS_BYTES_MAX, SKILLS_FOLDER, Scope, Shape, Skill, Slug,
    },
};
use rustix::{fs::Dir, io::Errno};

use crate::files;

/// Of what is said of one file: both its ends, because the middle is what somebody wrote there.
const FAULT_CHARS_MAX: usize = 200;
/// Said one by one to an agent that begins.
const FAULTS_TOLD_MAX: usize = 10;

/// All that there are for a task with this workspace.
#[must_use]
pub(crate) fn read(person: Option<&Path>, workspace: Option<&Path>) -> Catalogue {
    let persons = person.map(|folder| of_folder(folder, files::open_dir(folder), Scope::Person));
    let repositorys = workspace.map(|root| {
        let shown = root.join(REPOSITORY_FOLDER.join("/"));
        of_folder(&shown, below(root, REPOSITORY_FOLDER), Scope::Repository)
    });
    let persons = persons.unwrap_or_default();
    persons.under(repositorys.unwrap_or_default())
}

/// What an agent is told at its start of files that are of no use. Whoever fills a folder with those
/// does not decide how long its first words are.
#[must_use]
pub(crate) fn faults_told(all: &Catalogue) -> Vec<String> {
    let mut told: Vec<String> = all
        .faults()
        .take(FAULTS_TOLD_MAX)
        .map(str::to_owned)
        .collect();
    let more = all.faults().skip(FAULTS_TOLD_MAX).count();
    if more > 0 {
        told.push(format!("{more} more, which are not named here"));
    }
    told
}

fn below(root: &Path, folders: [&str; 2]) -> io::Result<OwnedFd> {
    let mut at = files::open_dir(root)?;
    for name in folders {
        at = files::open_dir_at(at.as_fd(), OsStr::new(name))?;
    }
    Ok(at)
}

/// A folder that is not there has nothing in it.
fn of_folder(shown: &Path, folder: io::Result<OwnedFd>, scope: Scope) -> Catalogue {
    let mut catalogue = Catalogue::default();
    let failed = |error: io::Error| format!("read {}: {error}", shown.display());
    let folder = match folder {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return catalogue,
        Err(error) => {
            catalogue.problems.push(failed(error));
            return catalogue;
        }
    };
    match names(&folder) {
        Ok((names, all)) => {
            for name in &names {
                add(&mut catalogue, folder.as_fd(), name, scope);
            }
            if !all {
                let what = format!(
                    "{} has more than {FILES_MAX} entries; the rest is left out",
                    shown.display()
                );
                catalogue.problems.push(what);
            }
        }
        Err(error) => catalogue.problems.push(failed(error)),
    }
    catalogue
}

/// Sorted, and whether these are all.
fn names(folder: &OwnedFd) -> io::Result<(Vec<String>, bool)> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        names.push(name.to_string_lossy().into_owned());
        // Whatever its name is, it counts: somebody may have put a million there.
        if names.len() > FILES_MAX {
            break;
        }
    }
    names.sort();
    let all = names.len() <= FILES_MAX;
    names.truncate(FILES_MAX);
    Ok((names, all))
}

fn add(catalogue: &mut Catalogue, folder: BorrowedFd<'_>, name: &str, scope: Scope) {
    match definition::slug_of(name) {
        // A text beside them, or somebody's notes.
        None => {}
        Some((Err(why), _)) => {
            let problem = brief(format!("read {name}: {why}"));
            catalogue.problems.push(problem);
        }
        Some((Ok(slug), shape)) => {
            let found = one(folder, name, &slug, scope, shape);
            let found = found.map_err(|why| brief(format!("read {name} of the {scope}: {why}")));
            catalogue.add(slug, found);
        }
    }
}

fn brief(fault: String) -> String {
    let chars = fault.chars().count();
    if chars <= FAULT_CHARS_MAX {
        return fault;
    }
    let half = FAULT_CHARS_MAX / 2;
    let head: String = fault.chars().take(half).collect();
    let tail: String = fault.chars().skip(chars - half).collect();
    format!("{head} [{} characters] {tail}", chars - 2 * half)
}

fn one(
    folder: BorrowedFd<'_>,
    name: &str,
    slug: &Slug,
    scope: Scope,
    shape: Shape,
) -> Result<Definition, String> {
    let text = text_of(folder, name).map_err(|unread| match unread {
        Unread::Missing => "it has just gone".to_owned(),
        Unread::Other(why) => why,
    })?;
    definition::parse(slug, scope, shape, &text)
}

enum Unread {
    Missing,
    Other(String),
}

fn text_of(folder: BorrowedFd<'_>, name: &str) -> Result<String, Unread> {
    let bytes = files::read_beneath(folder, Path::new(name), FILE_BYTES_MAX);
    let is_link = |error: &io::Error| error.raw_os_error() == Some(Errno::LOOP.raw_os_error());
    let bytes = bytes.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Unread::Missing,
        io::ErrorKind::FileTooLarge => {
            Unread::Other(format!("it has more than {FILE_BYTES_MAX} bytes"))
        }
        _ if is_link(&error) => Unread::Other("it is a link".to_owned()),
        _ => Unread::Other(error.to_string()),
    })?;
    String::from_utf8(bytes).map_err(|_| Unread::Other("it is no UTF-8".to_owned()))
}

/// What an agent is taught by the skills that its definition names: those of whoever wrote the
/// definition, and nobody else's.
///
/// # Errors
/// When one is not there, is of no use, or all are too long together.
pub(crate) fn skills(
    role: &Role,
    person: Option<&Path>,
    workspace: Option<&Path>,
) -> Result<Vec<Skill>, String> {
    if role.skills.is_empty() {
        return Ok(Vec::new());
    }
    let folder = match role.scope {
        Scope::Person => {
            let settings = person.and_then(Path::parent);
            settings.map(|own| files::open_dir(&own.join(SKILLS_FOLDER)))
        }
        Scope::Repository => {
            let [own, _] = REPOSITORY_FOLDER;
            workspace.map(|root| below(root, [own, SKILLS_FOLDER]))
        }
    };
    let none = || Err(io::Error::from(io::ErrorKind::NotFound));
    let folder = folder.unwrap_or_else(none);
    let folder =
        folder.map_err(|error| format!("read {SKILLS_FOLDER} of the {}: {error}", role.scope))?;
    let mut taught = Vec::new();
    for named in &role.skills {
        let name = definition::skill_name(named)?;
        let text = skill(&folder, &name)?;
        taught.push(Skill { name, text });
    }
    let bytes: usize = taught.iter().map(|skill| skill.text.len()).sum();
    if bytes > SKILLS_BYTES_MAX {
        return Err(format!(
            "its skills have {bytes} bytes together, and {SKILLS_BYTES_MAX} are the most"
        ));
    }
    Ok(taught)
}

fn skill(folder: &OwnedFd, name: &Slug) -> Result<String, String> {
    match text_of(folder.as_fd(), &format!("{name}.md")) {
        Ok(text) => Ok(definition::skill_text(&text).to_owned()),
        Err(Unread::Missing) => {
            let names = names(folder).map(|(names, _)| names).unwrap_or_default();
            let there = names.iter().filter_map(|name| name.strip_suffix(".md"));
            Err(format!(
                "its skill {name} is not there; there are {}",
                list(there)
            ))
        }
        Err(Unread::Other(why)) => Err(format!("read its skill {name}: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    const GOOD: &str = "---\ndescription: looks\nis_subagent: true\n---\nLook.\n";

    fn write(folder: &Path, name: &str, text: &str) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(name), text).unwrap();
    }

    #[test]
    fn a_repositorys_comes_first_and_what_is_of_no_use_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (person, root) = (dir.path().join("agents"), dir.path().join("w"));
        let own = root.join(".dispatch/agents");
        write(&person, "a.md", GOOD);
        write(&person, "b.toml", "is_subagent = true\n");
        write(&person, "notes.txt", "none of ours");
        write(&own, "b.md", GOOD);
        write(&own, "bad.md", "no front matter");
        write(&own, "large.md", &"x".repeat(70_000));
        write(&own, "-x.md", GOOD);
        symlink(dir.path().join("agents/a.md"), own.join("link.md")).unwrap();
        let all = read(Some(&person), Some(&root));
        let listed: Vec<(String, bool)> = all
            .listed()
            .into_iter()
            .map(|one| (one.slug, one.of_repository))
            .collect();
        assert_eq!(listed, [("a".into(), false), ("b".into(), true)]);
        let faults: Vec<&str> = all.faults().collect();
        let faults = faults.join("\n");
        for part in [
            "read bad.md of the repository: it does not begin",
            "read large.md of the repository: it has more than 65536 bytes",
            "read link.md of the repository: it is a link",
            "read -x.md: \"-x\" cannot be",
        ] {
            assert!(faults.contains(part), "{part}: {faults}");
        }
    }

    #[test]
    fn skills_are_of_whoever_wrote_the_definition_and_of_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let (person, root) = (dir.path().join("agents"), dir.path().join("w"));
        let (own, theirs) = (dir.path().join("skills"), root.join(".dispatch/skills"));
        write(&own, "rust.md", "---\nname: x\n---\nNo unwrap.\n");
        write(&own, "large.md", &"x".repeat(60_000));
        write(&own, "larger.md", &"x".repeat(60_000));
        write(&own, "most.md", &"x".repeat(60_000));
        write(&theirs, "tabs.md", "Use tabs.\n");
        symlink(own.join("rust.md"), theirs.join("link.md")).unwrap();
        let told = |scope, names: &[&str]| {
            let text = format!("skills = {names:?}\nis_subagent = true\n");
            let slug = "a".parse().unwrap();
            let definition = definition::parse(&slug, scope, Shape::Toml, &text).unwrap();
            let skills = skills(&definition.role, Some(&person), Some(&root));
            skills.map(|skills| {
                let texts: Vec<String> = skills.into_iter().map(|skill| skill.text).collect();
                texts.join("|")
            })
        };
        let (persons, repositorys) = (Scope::Person, Scope::Repository);
        assert_eq!(told(persons, &["global:rust"]).unwrap(), "No unwrap.");
        assert_eq!(told(repositorys, &["tabs"]).unwrap(), "Use tabs.");
        assert_eq!(told(repositorys, &[]).unwrap(), "");
        for (scope, names, part) in [
            (
                repositorys,
                &["rust"][..],
                "its skill rust is not there; there are link, tabs",
            ),
            (persons, &["tabs"], "its skill tabs is not there"),
            (repositorys, &["link"], "read its skill link: it is a link"),
            (persons, &["../agents/a"], "its skill \"../agents/a\": "),
            (
                persons,
                &["large", "larger", "most"],
                "180000 bytes together",
            ),
        ] {
            let error = told(scope, names).unwrap_err();
            assert!(error.starts_with(part) || error.contains(part), "{error}");
        }
    }

    #[test]
    fn what_is_of_no_use_is_named_at_no_length() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join(".dispatch/agents");
        let line = format!("{{{}", "\"".repeat(60_000));
        for n in 0..FILES_MAX {
            let text = format!("---\ndescription: {line}x\n---\n");
            write(&own, &format!("x{n:03}.md"), &text);
        }
        let all = read(None, Some(dir.path()));
        assert_eq!(
            all.faults().count(),
            FILES_MAX,
            "each is there to be asked for"
        );
        let told = faults_told(&all);
        assert_eq!(told.len(), FAULTS_TOLD_MAX + 1);
        let (first, last) = (&told[0], &told[FAULTS_TOLD_MAX]);
        assert!(
            first.starts_with("read x000.md of the repository: line 2: "),
            "{first}"
        );
        // Why, which stands at its end.
        assert!(first.ends_with("must stand in quotes"), "{first}");
        assert_eq!(last, "190 more, which are not named here");
        let longest = told.iter().map(|fault| fault.chars().count()).max();
        assert!(longest < Some(FAULT_CHARS_MAX + 50), "{longest:?}");
        // A few are all told.
        assert_eq!(faults_told(&Catalogue::default()), Vec::<String>::new());
    }

    #[test]
    fn no_link_leads_out_of_the_workspace_and_no_folder_is_too_full() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, root) = (dir.path().join("outside"), dir.path().join("w"));
        write(&outside, "a.md", GOOD);
        fs::create_dir_all(root.join(".dispatch")).unwrap();
        symlink(&outside, root.join(".dispatch/agents")).unwrap();
        let all = read(None, Some(&root));
        assert!(all.listed().is_empty());
        assert_eq!(all.faults().count(), 1, "{all:?}");
        assert_eq!(
            read(Some(&dir.path().join("none")), None),
            Catalogue::default()
        );
        for n in 0..300 {
            write(&outside, &format!("x{n}.md"), GOOD);
        }
        let all = read(Some(&outside), None);
        assert!(all.listed().len() <= FILES_MAX);
        assert!(all.faults().any(|fault| fault.contains("more than 200")));
    }
}
