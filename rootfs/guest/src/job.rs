//! Receiving a job: its environment, its files, its limits; or the wish to be ready for one.

use crate::{InitError, host::Host};
use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::mem;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use tako_guest::{Area, Limits, ToGuest};

/// The names of the files that every job has.
const CODE: &str = "main.py";
const INPUT: &str = "data.json";

/// What the program needs beside its files, which lie in place already.
pub(crate) struct Job {
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) limits: Limits,
}

/// What the host wants.
pub(crate) enum Wish {
    /// Run this job.
    Run(Job),
    /// Hold an interpreter with this environment.
    Hold(Vec<(String, String)>),
    /// Rehearse with the files that were sent.
    Ping,
}

/// The files of a job, as they come.
pub(crate) struct Files {
    /// Made before there is a job: every job has them.
    code: Option<File>,
    input: Option<File>,
    /// The one that was made last beside these.
    further: Option<File>,
    /// The one that the next bytes are for.
    current: Option<Place>,
}

enum Place {
    Code,
    Input,
    Further,
}

impl Files {
    /// None yet.
    pub(crate) fn none() -> Self {
        Self {
            code: None,
            input: None,
            further: None,
            current: None,
        }
    }

    /// Makes those that every job has.
    pub(crate) fn prepared() -> Result<Self, InitError> {
        Ok(Self {
            code: Some(create(Area::Code, CODE)?),
            input: Some(create(Area::Input, INPUT)?),
            ..Self::none()
        })
    }

    /// Takes out again what a rehearsal has put in.
    pub(crate) fn empty(&mut self) -> Result<(), InitError> {
        if self.further.is_some() {
            return Err(InitError::OutOfOrder);
        }
        self.current = None;
        let empty = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()
        };
        (self.code.iter_mut().chain(&mut self.input))
            .try_for_each(empty)
            .map_err(InitError::system("empty a file of the rehearsal"))
    }

    fn begin(&mut self, area: Area, name: &str) -> Result<(), InitError> {
        let place = match (area, name) {
            (Area::Code, CODE) if self.code.is_some() => Place::Code,
            (Area::Input, INPUT) if self.input.is_some() => Place::Input,
            _ => {
                self.further = Some(create(area, name)?);
                Place::Further
            }
        };
        self.current = Some(place);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), InitError> {
        let file = match self.current {
            Some(Place::Code) => &mut self.code,
            Some(Place::Input) => &mut self.input,
            Some(Place::Further) => &mut self.further,
            None => &mut None,
        };
        let file = file.as_mut().ok_or(InitError::OutOfOrder)?;
        file.write_all(bytes)
            .map_err(InitError::system("write an input file"))
    }
}

/// Takes frames until one that asks for something, writing each file as it comes.
pub(crate) fn receive(host: &mut Host, files: &mut Files) -> Result<Wish, InitError> {
    let mut environment = Vec::new();
    loop {
        let wish = host.receive(|frame| match frame {
            ToGuest::Env { name, value } => {
                environment.push((name.to_owned(), value.to_owned()));
                Ok(None)
            }
            ToGuest::File { area, name, .. } => files.begin(area, name).map(|()| None),
            ToGuest::Data(bytes) => files.write(bytes).map(|()| None),
            ToGuest::Start(limits) => Ok(Some(Wish::Run(Job {
                environment: mem::take(&mut environment),
                limits,
            }))),
            ToGuest::Hold => Ok(Some(Wish::Hold(mem::take(&mut environment)))),
            ToGuest::Ping => Ok(Some(Wish::Ping)),
            ToGuest::Cancel => Err(InitError::OutOfOrder),
        })?;
        if let Some(wish) = wish {
            return Ok(wish);
        }
    }
}

/// Makes a file that the program can read and not change: root's, in a directory of root's.
fn create(area: Area, name: &str) -> Result<File, InitError> {
    let directory = match area {
        Area::Code => "/code",
        Area::Input => "/input",
    };
    // The host has checked the name; a separator here would leave the directory.
    if name.contains('/') || name == ".." {
        return Err(InitError::OutOfOrder);
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(Path::new(directory).join(name))
        .map_err(InitError::system("make an input file"))
}
