//! Programs of several processes: a PostgreSQL under pgbench, and a Chromium with a busy page.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, Uid, chown};

/// The user that PostgreSQL and Chromium run as where the tests run as root: nobody.
const NOBODY: u32 = 65534;

/// A directory and the processes that use it.
struct Place {
    dir: PathBuf,
    started: Vec<Child>,
}

impl Drop for Place {
    fn drop(&mut self) {
        for child in self.started.iter_mut().rev() {
            let group = Pid::from_raw(child.id().cast_signed());
            let _ = killpg(group, Signal::SIGKILL);
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Place {
    fn new(name: &str) -> Place {
        let dir = std::env::temp_dir().join(format!("referee-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        if Uid::effective().is_root() {
            chown(&dir, Some(NOBODY.into()), Some(NOBODY.into())).unwrap();
        }
        Place {
            dir,
            started: Vec::new(),
        }
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.dir).env("HOME", &self.dir);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if Uid::effective().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    fn start(&mut self, mut command: Command) {
        self.started.push(command.process_group(0).spawn().unwrap());
    }
}

/// Processes whose parent is `parent`, or any of theirs.
fn family(parent: u32) -> Vec<u32> {
    let mut parents: Vec<(u32, u32)> = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(pid): Option<u32> = pid else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        if let Some(ppid) = rest.split(' ').nth(1).and_then(|word| word.parse().ok()) {
            parents.push((pid, ppid));
        }
    }
    let mut found = vec![parent];
    let mut next = 0;
    while next < found.len() {
        let children = parents.iter().filter(|(_, ppid)| *ppid == found[next]);
        let children: Vec<u32> = children.map(|(pid, _)| *pid).collect();
        found.extend(children);
        next += 1;
    }
    found
}

fn is_called(pid: u32, what: &str) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    name.contains(what)
}

fn as_pids(pids: impl Iterator<Item = u32>) -> Vec<Pid> {
    pids.map(|pid| Pid::from_raw(pid.cast_signed())).collect()
}

pub struct Postgres(Place);

impl Postgres {
    pub fn start() -> Postgres {
        let bin = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let bin = bin
            .map(|version| version.path().join("bin"))
            .chain(std::env::split_paths(&path))
            .find(|bin| bin.join("initdb").is_file() && bin.join("pgbench").is_file());
        let bin = bin.expect("PostgreSQL with pgbench is needed for this test");
        let mut place = Place::new("postgres");
        let data = place.dir.join("data");
        let mut initdb = place.command(&bin.join("initdb"));
        initdb.args([
            "--no-sync",
            "-A",
            "trust",
            "-U",
            "postgres",
            "--locale=C",
            "-D",
        ]);
        assert!(initdb.arg(&data).status().unwrap().success());
        let mut server = place.command(&bin.join("postgres"));
        server.args(["-c", "listen_addresses=", "-c", "fsync=off", "-k"]);
        server.arg(&place.dir).arg("-D").arg(&data);
        place.start(server);
        let client = |place: &Place| {
            let mut client = place.command(&bin.join("pgbench"));
            client.args(["-U", "postgres", "-h"]).arg(&place.dir);
            client.env("PGDATABASE", "postgres");
            client
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !client(&place)
            .args(["-i", "-q"])
            .status()
            .unwrap()
            .success()
        {
            assert!(Instant::now() < deadline, "PostgreSQL does not come up");
            sleep(Duration::from_millis(200));
        }
        let sort = place.dir.join("sort.sql");
        let query = "SELECT count(*) FROM (SELECT md5(g::text) AS m FROM \
                     generate_series(1, 20000) g ORDER BY m) sorted;";
        fs::write(&sort, query).unwrap();
        let mut load = client(&place);
        load.args(["-c", "4", "-T", "100000", "-b", "tpcb-like@1", "-f"]);
        load.arg(format!("{}@1", sort.display()));
        place.start(load);
        let postgres = Postgres(place);
        while postgres.backends().len() < 4 {
            assert!(Instant::now() < deadline, "pgbench does not come up");
            sleep(Duration::from_millis(50));
        }
        postgres
    }

    /// The processes that serve pgbench.
    pub fn backends(&self) -> Vec<Pid> {
        let all = family(self.0.started[0].id()).into_iter();
        as_pids(all.filter(|&pid| is_called(pid, "[local]")))
    }
}

pub struct Chromium(Place);

impl Chromium {
    pub const PROGRAM: &str = "/usr/bin/chromium";

    pub fn start() -> Chromium {
        let mut place = Place::new("chromium");
        let page = "<body><script>
            const list = [];
            function work() {
                for (let i = 0; i < 2000; i++) list[i] = { key: (i * 7919) % 2003, text: 'n' + i };
                list.sort((a, b) => a.key - b.key);
                const p = document.createElement('p');
                p.textContent = JSON.stringify(list.slice(0, 50)) + new Array(5000).join('x');
                document.body.replaceChildren(p);
                setTimeout(work, 0);
            }
            work();
            setInterval(() => new ArrayBuffer(4 << 20), 5);
            </script>";
        let path = place.dir.join("page.html");
        fs::write(&path, page).unwrap();
        let mut browser = place.command(Path::new(Chromium::PROGRAM));
        browser.args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-port=0",
        ]);
        browser.arg(format!(
            "--user-data-dir={}",
            place.dir.join("profile").display()
        ));
        browser.arg(format!("file://{}", path.display()));
        place.start(browser);
        let chromium = Chromium(place);
        let deadline = Instant::now() + Duration::from_secs(60);
        while !chromium.has_renderer() {
            assert!(Instant::now() < deadline, "Chromium does not come up");
            sleep(Duration::from_millis(100));
        }
        sleep(Duration::from_secs(3));
        chromium
    }

    fn has_renderer(&self) -> bool {
        let all = family(self.0.started[0].id());
        all.into_iter().any(|pid| is_called(pid, "--type=renderer"))
    }

    /// The browser, its renderers, and the rest.
    pub fn processes(&self) -> Vec<Pid> {
        let all = family(self.0.started[0].id()).into_iter();
        as_pids(all.filter(|&pid| is_called(pid, "chromium")))
    }
}
