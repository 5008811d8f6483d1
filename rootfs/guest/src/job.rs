//! Receiving a job: its environment, its files, its limits; or the wish to be ready for one.

use crate::{InitError, host::Host};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::mem;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use tako_guest::{Area, Limits, ToGuest};

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
    /// Tell whether one is held.
    Ping,
}

/// Takes frames until one that asks for something, writing each file as it comes.
pub(crate) fn receive(host: &mut Host) -> Result<Wish, InitError> {
    let mut environment = Vec::new();
    let mut file = None;
    loop {
        let wish = host.receive(|frame| match frame {
            ToGuest::Env { name, value } => {
                environment.push((name.to_owned(), value.to_owned()));
                Ok(None)
            }
            ToGuest::File { area, name, .. } => {
                file = Some(create(area, name)?);
                Ok(None)
            }
            ToGuest::Data(bytes) => {
                let file: &mut File = file.as_mut().ok_or(InitError::OutOfOrder)?;
                file.write_all(bytes)
                    .map_err(InitError::system("write an input file"))?;
                Ok(None)
            }
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
    new_file(&Path::new(directory).join(name)).map_err(InitError::system("make an input file"))
}

pub(crate) fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(path)
}
