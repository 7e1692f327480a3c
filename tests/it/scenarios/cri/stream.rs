//! Execs and streams: to completion, and as sessions.

use super::{Scenario, cri};
use crate::{
    case::RuntimeCase,
    lab::{
        Lab,
        cri::{
            api::ContainerState,
            pod::{Exec, Pod},
        },
    },
};

pub const SCENARIOS: &[Scenario] = &[
    ("an exec returns both streams and its exit code, and is ended at its timeout", exec),
    ("an exec session carries input, output and exit code", session),
    ("an exec session on a terminal has its size, before and after a change", terminal),
    ("a client attaches to a container's streams, goes, and another comes", attach),
    ("a client attaches to a container's terminal", attach_terminal),
];

fn exec(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let container = pod.start("main", &["sleep", "1000"]);
    let exec = container.exec(&["sh", "-c", "echo out; echo err >&2; exit 42"]);
    assert_eq!(exec, Exec { stdout: "out\n".into(), stderr: "err\n".into(), code: 42 });

    // A megabyte that arrives whole.
    let exec = container.exec(&["sh", "-c", "head -c 1048576 /dev/zero | tr '\\0' x"]);
    assert_eq!((exec.stdout.len(), exec.code), (1 << 20, 0));

    let error = container.try_exec(&["sleep", "100"], 1).unwrap_err();
    assert!(error.message.contains("timeout"), "{error}");
    let processes = container.shell("ps -o args");
    assert!(!processes.contains("sleep 100\n"), "{processes}");

    let error = container.try_exec(&["/bin/absent"], 5).unwrap_err();
    assert!(error.message.contains("/bin/absent"), "{error}");
    assert_eq!(container.state(), ContainerState::Running);
}

fn session(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let container = pod.start("main", &["sleep", "1000"]);
    let session = container.exec_stream(false, &["sh", "-c", "read line; echo got $line; echo err >&2; exit 7"]);
    session.write("some words\n");
    let end = session.finish();
    assert_eq!((end.stdout.as_str(), end.stderr.as_str(), end.code), ("got some words\n", "err\n", Some(7)));
    assert_eq!(container.exec_stream(false, &["true"]).finish().code, Some(0));
}

fn terminal(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let container = pod.start("main", &["sleep", "1000"]);
    let session = container.exec_stream(true, &["sh"]);
    session.resize(100, 40);
    // The shell echoes what it is told; its answers are told from that by what they compute.
    session.write("test -t 0 && until [ \"$(stty size)\" = '40 100' ]; do sleep 0.01; done; echo first-$((1+1))\n");
    session.until_it_says("first-2");
    session.resize(90, 30);
    session.write("until [ \"$(stty size)\" = '30 90' ]; do sleep 0.01; done; echo second-$((1+1))\n");
    session.until_it_says("second-2");
    session.write("exit 6\n");
    assert_eq!(session.finish().code, Some(6));
}

fn attach(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let container = pod.start_with(
        "main",
        &["sh", "-c", "while read line; do echo got $line; done; echo end of input"],
        |config| config.stdin = true,
    );
    for round in ["first", "second"] {
        let session = container.attach(false);
        session.write(&format!("{round}\n"));
        session.until_it_says(&format!("got {round}"));
    }
    assert_eq!(container.state(), ContainerState::Running);
    container.until_it_says("got second");
    assert_eq!(container.logged("stdout"), "got first\ngot second\n");
}

fn attach_terminal(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let container = pod.start_with("main", &["sh"], |config| {
        config.stdin = true;
        config.tty = true;
    });
    let session = container.attach(true);
    session.resize(70, 20);
    session.write("until [ \"$(stty size)\" = '20 70' ]; do sleep 0.01; done; echo sized-$((1+1))\n");
    session.until_it_says("sized-2");
    session.write("exit 8\n");
    assert_eq!(container.ended().exit_code, 8);
    assert!(container.logged("stdout").contains("sized-2"));
}
