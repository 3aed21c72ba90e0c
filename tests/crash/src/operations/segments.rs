//! Segments: making, finding, joining and leaving them, their names, and objects by name.
//!
//! A segment that the victim makes or finds for itself is not known to the harness: such operations are killed for real only.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossproc_atomic::{AtomicU32, AtomicU64, Ordering};
use crossproc_primitives::{Objects, Value};
use crossproc_segment::plain::Plain;
use crossproc_segment::{Error, ErrorKind, ObjectKind, ObjectSpec, Segment, SegmentOptions, Unlink};

use crate::scene::{
    After, Bad, Check, Found, Operation, Part, Stage, corrupt, done, duplicated, expect, lost, on,
};
use crate::step::{Bystander, Memory, marked};

const LEN: usize = 4096;
const NAME: &str = "name";
/// What is in a segment that somebody else made.
const CONTENT: u64 = 41;

pub fn add(table: &mut Vec<Operation>) {
    names(table);
    files(table);
    joining(table);
    objects(table);
}

fn options() -> SegmentOptions {
    SegmentOptions::new().participants(4).objects(2).timeout(Duration::from_secs(1))
}

/// Starts the thread that each process with a segment has, so that it is not the operation that starts it.
fn warm() {
    drop(options().anonymous(LEN).expect("memory for a segment"));
}

fn content(segment: &Segment) -> Result<u64, Bad> {
    let value: Result<Value<u64>, Error> = segment.value("content", 0);
    value.ok().and_then(|value| value.get().ok()).map_or_else(|| corrupt("its object can not be read"), Ok)
}

// ---- names and files: a directory of their own for each stage

/// Where a stage has its names; removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("crossproc-crash-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a directory for names");
        Self(path)
    }

    fn empty(&self) {
        fs::remove_dir_all(&self.0)
            .and_then(|()| fs::create_dir(&self.0))
            .expect("a directory to be emptied");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left is in the directory of temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a victim and survivors know: where names and files are.
struct Place(PathBuf);

impl Place {
    fn options(&self) -> SegmentOptions {
        options().directory(&self.0)
    }

    fn file(&self) -> PathBuf {
        self.0.join("file")
    }

    /// Everything that has a name there, hidden or not.
    fn names(&self) -> Vec<String> {
        fn walk(folder: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    walk(&entry.path(), found);
                } else {
                    found.push(entry.file_name().to_string_lossy().into_owned());
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.0, &mut found);
        found
    }
}

/// An operation on names or files.
struct InFolder {
    /// What a process did that was killed then.
    dead: Option<Part<Place>>,
    /// What a process did that lives on.
    living: Option<Part<Place>>,
    victim: Part<Place>,
    check: Check<Place>,
}

fn in_folder(
    victim: impl Fn(&Place) + 'static,
    check: impl Fn(&Place, After) -> Found + 'static,
) -> InFolder {
    InFolder { dead: None, living: None, victim: Box::new(victim), check: Box::new(check) }
}

impl InFolder {
    fn dead(mut self, part: impl Fn(&Place) + 'static) -> Self {
        self.dead = Some(Box::new(part));
        self
    }

    fn living(mut self, part: impl Fn(&Place) + 'static) -> Self {
        self.living = Some(Box::new(part));
        self
    }

    fn named(self, name: &'static str, state: &'static str) -> Operation {
        let parts = std::rc::Rc::new(self);
        Operation::new(name, state, move || {
            let folder = Folder::new();
            let place = Place(folder.0.clone());
            let mut stage = FolderStage { parts: std::rc::Rc::clone(&parts), _living: None, place, folder };
            stage.reset();
            stage
        })
    }
}

struct FolderStage {
    parts: std::rc::Rc<InFolder>,
    // Dropped before the folder.
    _living: Option<Bystander>,
    place: Place,
    folder: Folder,
}

impl Stage for FolderStage {
    fn memory(&self) -> Option<Memory> {
        None
    }
    fn reset(&mut self) {
        self._living = None;
        self.folder.empty();
        if let Some(part) = &self.parts.dead {
            drop(Bystander::start(|| part(&self.place)));
        }
        self._living = self.parts.living.as_ref().map(|part| Bystander::start(|| part(&self.place)));
    }
    fn victim(&self) {
        warm();
        (self.parts.victim)(&self.place);
    }
    fn recover(&self) {}
    fn check(&self, after: After) -> Found {
        (self.parts.check)(&self.place, after)
    }
}

/// Makes a named segment with something in it, and keeps it.
fn make(place: &Place, policy: Unlink) {
    let segment = place.options().unlink_policy(policy).create(NAME, LEN).expect("a new name");
    std::mem::forget(segment.value("content", CONTENT).expect("a value"));
    std::mem::forget(segment);
}

fn make_file(place: &Place) {
    let segment = place.options().create_file(place.file(), LEN).expect("a new file");
    std::mem::forget(segment.value("content", CONTENT).expect("a value"));
    std::mem::forget(segment);
}

/// The name can be taken, used, and given back; nothing else is in the directory then.
fn name_is_free(place: &Place) -> Found {
    match place.options().create(NAME, LEN) {
        Ok(segment) => {
            expect(segment.objects().is_empty(), || "a new segment is not empty".to_owned())?;
            drop(segment.value("content", CONTENT).expect("room for a value"));
            let again = place.options().open(NAME);
            expect(again.is_ok_and(|again| again.id() == segment.id()), || {
                "a new segment is not found".to_owned()
            })?;
            drop(segment);
        }
        Err(error) => return corrupt(format!("the name can not be taken: {error}")),
    }
    let left = place.names();
    expect(left.is_empty(), || format!("left behind: {left:?}"))
}

/// A segment that somebody living uses is still there, and only living ones are counted.
fn still_used(opened: Result<Segment, Error>) -> Found {
    match opened {
        Ok(segment) => {
            let found = content(&segment)?;
            expect(found == CONTENT, || format!("its content is {found}"))?;
            let living = segment.living().unwrap_or(0);
            expect(living == 2, || format!("{living} participants live, not 2"))
        }
        Err(error) => lost(format!("a segment in use can not be opened: {error}")),
    }
}

/// There after it was made; there or not before that.
fn made(opened: Result<Segment, Error>, after: After) -> Result<Option<Segment>, Bad> {
    match opened {
        Ok(segment) if after.begun => {
            expect(segment.capacity() >= LEN, || "it is too small".to_owned())?;
            segment
                .value("content", CONTENT)
                .map_or_else(|e| corrupt(format!("it can not be used: {e}")), |_| Ok(()))?;
            Ok(Some(segment))
        }
        Ok(_) => corrupt("it was there before it was made"),
        Err(error) if error.kind() == ErrorKind::NotFound && !after.returned => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => lost("it was made, and is not there"),
        Err(error) => corrupt(format!("it can not be opened: {error}")),
    }
}

fn names(table: &mut Vec<Operation>) {
    table.push(
        in_folder(|place| done(marked(|| place.options().anonymous(LEN))), |_, _| Ok(()))
            .named("Segment::anonymous", ""),
    );
    let create = |place: &Place| done(marked(|| place.options().create(NAME, LEN)).expect("a new name"));
    // The victim's handle goes with it: here it is dropped after the second marker, at which it dies.
    table.push(in_folder(create, |place, _| name_is_free(place)).named("Segment::create", "a free name"));
    table.push(
        in_folder(create, |place, _| name_is_free(place))
            .dead(|place| make(place, Unlink::LastClose))
            .named("Segment::create", "the name of a dead one"),
    );
    table.push(
        in_folder(
            |place| done(marked(|| place.options().unlink_policy(Unlink::Never).create(NAME, LEN))),
            |place, after| {
                if made(place.options().open(NAME), after)?.is_some() {
                    place.options().remove(NAME).or_else(|e| corrupt(format!("removing: {e}")))?;
                }
                name_is_free(place)
            },
        )
        .named("Segment::create", "to stay"),
    );
    table.push(
        in_folder(
            |place| done(marked(|| place.options().create(NAME, LEN))),
            |place, _| still_used(place.options().open(NAME)),
        )
        .living(|place| make(place, Unlink::LastClose))
        .named("Segment::create", "the name is in use"),
    );
    table.push(
        in_folder(
            |place| done(marked(|| place.options().open_or_create(NAME, LEN))),
            |place, _| name_is_free(place),
        )
        .named("Segment::open_or_create", "a free name"),
    );
    for (name, open_or_create) in [("Segment::open", false), ("Segment::open_or_create", true)] {
        table.push(
            in_folder(
                move |place| {
                    if open_or_create {
                        done(marked(|| place.options().open_or_create(NAME, LEN)).expect("it is there"));
                    } else {
                        done(marked(|| place.options().open(NAME)).expect("it is there"));
                    }
                },
                |place, _| still_used(place.options().open(NAME)),
            )
            .living(|place| make(place, Unlink::LastClose))
            .named(name, "in use"),
        );
    }
    table.push(
        in_folder(
            |place| {
                let segment = place.options().create(NAME, LEN).expect("a new name");
                marked(|| drop(segment));
            },
            |place, after| {
                let left = place.names();
                expect(!after.returned || left.is_empty(), || format!("left behind: {left:?}"))?;
                name_is_free(place)
            },
        )
        .named("Segment::drop", "the last one, with a name"),
    );
    table.push(
        in_folder(
            |place| {
                let segment = place.options().open(NAME).expect("it is there");
                marked(|| drop(segment));
            },
            |place, _| still_used(place.options().open(NAME)),
        )
        .living(|place| make(place, Unlink::LastClose))
        .named("Segment::drop", "others use it"),
    );
    table.push(
        in_folder(
            |place| marked(|| place.options().remove(NAME)).expect("it is there"),
            |place, after| {
                match place.options().open(NAME) {
                    Err(error) if error.kind() == ErrorKind::NotFound && after.begun => {}
                    Err(error) => return lost(format!("the name, before it was removed: {error}")),
                    Ok(_) if after.returned => return duplicated("the name is there after it was removed"),
                    Ok(segment) => {
                        still_used(Ok(segment))?;
                        place.options().remove(NAME).or_else(|e| corrupt(format!("removing: {e}")))?;
                    }
                }
                name_is_free(place)
            },
        )
        .living(|place| make(place, Unlink::LastClose))
        .named("Segment::unlink", "in use"),
    );
}

fn files(table: &mut Vec<Operation>) {
    table.push(
        in_folder(
            |place| done(marked(|| place.options().file(place.file(), LEN))),
            |place, after| {
                drop(made(place.options().open_file(place.file()), after)?);
                let segment = place.options().file(place.file(), LEN);
                segment
                    .map_or_else(|e| corrupt(format!("the file can not be used: {e}")), |s| still(&s, place))
            },
        )
        .named("Segment::file", "a new file"),
    );
    for (state, lives) in [("in use", true), ("its users are dead", false)] {
        let parts = in_folder(
            |place| done(marked(|| place.options().open_file(place.file())).expect("it is there")),
            move |place, _| match place.options().open_file(place.file()) {
                Ok(segment) if lives => still_used(Ok(segment)),
                Ok(segment) => {
                    let found = content(&segment)?;
                    expect(found == CONTENT, || format!("its content is {found}"))?;
                    let living = segment.living().unwrap_or(0);
                    expect(living == 1, || format!("{living} participants live, not 1"))
                }
                Err(error) => lost(format!("the file can not be opened: {error}")),
            },
        );
        let parts = if lives { parts.living(make_file) } else { parts.dead(make_file) };
        table.push(parts.named("Segment::open_file", state));
    }
}

/// One file, and a segment in it that can be used.
fn still(segment: &Segment, place: &Place) -> Found {
    segment
        .value("content", CONTENT)
        .map_or_else(|e| corrupt(format!("it can not be used: {e}")), |_| Ok(()))?;
    let left = place.names();
    expect(left == ["file"], || format!("in the directory: {left:?}"))
}

// ---- joining and leaving memory that the harness knows

/// A segment with room for two processes: the harness, and one more. A dead one must give up its place.
struct Joining {
    segment: Segment,
    first: Vec<u8>,
    cold: bool,
    victim: fn(&Segment),
}

impl Stage for Joining {
    fn memory(&self) -> Option<Memory> {
        Some(Memory::of(&self.segment))
    }
    fn reset(&mut self) {
        Memory::of(&self.segment).restore(&self.first);
    }
    fn victim(&self) {
        if !self.cold {
            warm();
        }
        (self.victim)(&self.segment);
    }
    fn recover(&self) {
        warm();
        done(marked(|| self.segment.attach_again()));
    }
    fn check(&self, _: After) -> Found {
        for _ in 0..2 {
            let segment = match self.segment.attach_again() {
                Ok(segment) => segment,
                Err(error) => return lost(format!("a dead one's place can not be had: {error}")),
            };
            let attached = segment.attached().or_else(|e| corrupt(format!("who is attached: {e}")))?;
            let living = segment.living().unwrap_or(0);
            let mine = attached.iter().filter(|one| one.is_me).count();
            expect((attached.len(), living, mine) == (2, 2, 1), || {
                format!("{living} live, attached are {attached:?}")
            })?;
            let found = content(&segment)?;
            expect(found == CONTENT, || format!("its content is {found}"))?;
        }
        Ok(())
    }
    fn segment(&self) -> Option<&Segment> {
        Some(&self.segment)
    }
}

fn joining(table: &mut Vec<Operation>) {
    let mut push = |name, state, cold, victim: fn(&Segment)| {
        let mut operation = Operation::new(name, state, move || {
            let segment = options().participants(2).anonymous(LEN).expect("memory for a segment");
            drop(segment.value("content", CONTENT).expect("a value"));
            let first = Memory::of(&segment).image();
            Joining { segment, first, cold, victim }
        });
        operation.doubles = true;
        operation.starts_threads = cold;
        operation.minor = cold || name == "SegmentOptions::received";
        table.push(operation);
    };
    push("Segment::attach_again", "", false, |segment| done(marked(|| segment.attach_again())));
    push("Segment::attach_again", "the process's first", true, |segment| {
        done(marked(|| segment.attach_again()))
    });
    push("SegmentOptions::received", "", false, |segment| {
        let fd = segment.fd().expect("a memory file").try_clone_to_owned().expect("a descriptor");
        done(marked(|| options().received(fd)));
    });
    push("Segment::drop", "", false, |segment| {
        let joined = segment.attach_again().expect("there is a place");
        marked(|| drop(joined));
    });
    push("Segment::living", "", false, |segment| {
        let joined = segment.attach_again().expect("there is a place");
        done(marked(|| joined.living()));
    });
}

// ---- objects by name

const FIRST: [u64; 3] = [3, 4, 5];

/// The victim makes an object in a segment that has room for two.
fn objects(table: &mut Vec<Operation>) {
    fn check(segment: &Segment, after: After) -> Found {
        let there = segment.objects().iter().filter(|object| object.name == "new").count();
        expect(there <= 1, || format!("{there} objects have the name"))?;
        if there == 0 && (after.returned || after.second == Some(true)) {
            return lost("it was made, and is not there");
        }
        let early = there == 1 && !after.begun && after.second.is_none();
        expect(!early, || "it was there before it was made".to_owned())?;
        let value = match segment.value("new", FIRST) {
            Ok(value) => value,
            Err(error) => return corrupt(format!("it can not be had: {error}")),
        };
        expect(value.get() == Ok(FIRST), || format!("it is {:?}", value.get()))?;
        expect(value.set([6; 3]).is_ok() && value.get() == Ok([6; 3]), || "it can not be set".to_owned())?;
        // As much memory as without a death.
        let other = options().anonymous(LEN).expect("memory for a segment");
        drop(other.value("new", FIRST).expect("room for a value"));
        let (used, should) = (segment.used(), other.used());
        expect(used == should, || format!("{used} bytes are used, not {should}"))?;
        if let Err(error) = segment.lock("second") {
            return lost(format!("the place of another object: {error}"));
        }
        let third = segment.lock("third").map(drop).map_err(|error| error.kind());
        expect(third == Err(ErrorKind::NoSpace), || format!("a third object: {third:?}"))?;
        let objects = segment.objects();
        expect(objects.len() == 2, || format!("{objects:?}"))
    }
    let make = |segment: &Segment| done(marked(|| segment.value("new", FIRST)));
    table.push(
        on(Segment::clone)
            .objects(2)
            .victim(make)
            .recover(make)
            .check(check)
            .named("Objects::value", "a new one"),
    );
    table.push(
        on(Segment::clone)
            .objects(2)
            .dead(|segment| done(segment.value("new", FIRST)))
            .victim(make)
            .recover(make)
            .check(|segment, _| check(segment, After { begun: true, returned: true, second: None }))
            .named("Objects::value", "one that is there"),
    );
    // Found under its name and not yet there: nothing is left of it when its maker dies while it is made.
    table.push(
        on(Segment::clone)
            .objects(2)
            .victim(|segment| {
                let spec = spec();
                done(marked(|| {
                    segment.create_object("raw", &spec, |mapping, offset| {
                        mapping
                            .place::<AtomicU64>(offset)
                            .expect("its first word")
                            .store(CONTENT, Ordering::Relaxed);
                    })
                }));
            })
            .recover(|segment| {
                let spec = spec();
                done(marked(|| segment.open_or_create_object("raw", &spec, |_, _| ())));
            })
            .check(|segment, after| {
                let spec = spec();
                let word = |object: crossproc_segment::Object| {
                    let place = segment.mapping().place::<AtomicU64>(object.offset);
                    place.map_or(u64::MAX, |word| word.load(Ordering::Relaxed))
                };
                let found = segment.open_object("raw", &spec).map(word).map_err(|error| error.kind());
                let not_there = found == Err(ErrorKind::NotFound);
                if not_there && (after.returned || after.second == Some(true)) {
                    return lost("it was made, and is not there");
                }
                let right = not_there || found == Ok(CONTENT) || found == Ok(0) && after.second.is_some();
                expect(right, || format!("its first word is {found:?}"))?;
                // Zeroed, whatever a dead one had written there.
                let again = segment.open_or_create_object("raw", &spec, |_, _| ()).map(word);
                let should = found.unwrap_or(0);
                expect(again.as_ref().is_ok_and(|&word| word == should), || {
                    format!("{again:?}, not {should}")
                })?;
                expect(segment.lock("second").is_ok(), || "there is no room for another".to_owned())
            })
            .named("Segment::create_object", "a new one"),
    );
}

fn spec() -> ObjectSpec {
    ObjectSpec {
        kind: ObjectKind::new("Crash"),
        layout: u64::LAYOUT,
        count: 3,
        bytes: 24,
        align: 8,
        windows: 0,
    }
}
