"""The container engine: found or started, the image, and compose."""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCKER_DIR = Path(__file__).resolve().parent.parent
ROOT = DOCKER_DIR.parent
PROJECT = "vipd-lab"
IMAGE = "vipd-lab"
BASE_IMAGE = "vipd-lab-base"
PULLED_BASE = "debian:bookworm-slim"
PULLED_RUST = "rust:1-bookworm"
PROGRAMS = ("vipd", "vipctl", "vip-lab")
# Tells which programs and scripts an image was made of.
LABEL = "vipd.lab.contents"
# Tells which images were pulled for it and not there before: `down` removes them, too.
PULLED_LABEL = "vipd.lab.pulled"
# The image of the stage that compiles, which the classic builder leaves behind without a name.
BUILD_STAGE_LABEL = "vipd.made-by=lab"
# By this `docker/engine` ends where an engine cannot be had.
CANNOT = 3


class LabError(Exception):
    """What went wrong, and what to do, for people."""


class Unavailable(LabError):
    """What the lab needs cannot be had here: no engine, no image."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(args, *, check=True, input=None, timeout=120, **more):
    """Runs a command; its output, or an error that names it and carries what it complained about."""
    try:
        done = subprocess.run(args, input=input, text=True, capture_output=True, timeout=timeout, **more)
    except FileNotFoundError as error:
        raise LabError(f"there is no program {args[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(map(str, args))}: not done within {timeout} s") from error
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(map(str, args))}: {(done.stderr or done.stdout).strip()}")
    return done


class Engine:
    """A Docker engine that answers."""

    def __init__(self, host, own):
        # Whether it is the one that docker/engine starts: its images need no thrift, and it reaches no registry.
        self.own = own
        if host:
            os.environ["DOCKER_HOST"] = host

    @classmethod
    def find(cls):
        """The engine that answers: the one that `docker` is set up for, else the lab's own. None if neither does."""
        if not shutil.which("docker"):
            return None
        if cls._answers([]):
            return cls(None, own=cls._own_socket() == os.environ.get("DOCKER_HOST"))
        if cls._answers(["-H", cls._own_socket()]):
            return cls(cls._own_socket(), own=True)
        return None

    @classmethod
    def get(cls):
        engine = cls.find()
        if engine is None:
            raise Unavailable("no container engine answers. Start yours, or, on Debian as root: docker/lab up")
        return engine

    @classmethod
    def get_or_start(cls):
        engine = cls.find()
        if engine is None:
            say("no container engine answers: starting one for the lab")
            if os.geteuid() != 0:
                raise Unavailable("no container engine answers, and making one needs root. Start yours, or run this as root")
            starting = subprocess.Popen([DOCKER_DIR / "engine", "start"], stderr=subprocess.PIPE, text=True)
            words = ""
            for words in starting.stderr:
                say(words.rstrip())
            if code := starting.wait():
                kind = Unavailable if code == CANNOT else LabError
                raise kind(f"cannot start a container engine for the lab: {words.removeprefix('engine: ').strip()}")
            engine = cls.get()
        return engine

    @staticmethod
    def own_is_there():
        """Whether `docker/engine` has started an engine that was not stopped by it, even if it does not run any more."""
        return run([DOCKER_DIR / "engine", "exists"], check=False).returncode == 0

    @staticmethod
    def stop_own():
        """Ends the lab's own engine, or what is left of it."""
        run([DOCKER_DIR / "engine", "stop"])

    @staticmethod
    def _own_socket():
        return run([DOCKER_DIR / "engine", "socket"]).stdout.strip()

    @staticmethod
    def _answers(args):
        version = ["version", "--format", "{{.Server.Version}}"]
        return run(["docker", *args, *version], check=False).returncode == 0

    def docker(self, *args, **more):
        return run(["docker", *args], **more)

    @staticmethod
    def compose_command():
        """What is called for compose: as VIPD_LAB_COMPOSE says, or the one that is there."""
        if told := os.environ.get("VIPD_LAB_COMPOSE"):
            command = shlex.split(told)
            if not shutil.which(command[0]):
                raise LabError(f"VIPD_LAB_COMPOSE: there is no program {command[0]}")
        elif run(["docker", "compose", "version"], check=False).returncode == 0:
            command = ["docker", "compose"]
        elif shutil.which("docker-compose"):
            command = ["docker-compose"]
        else:
            raise Unavailable("neither `docker compose` nor `docker-compose` is there: install one of them")
        return command

    def compose(self, *args, **more):
        command = self.compose_command()
        files = ["compose.yaml"]
        # docker/engine has given containers a share of the real-time scheduling, where it needs giving.
        if self.own and Path("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists():
            files.append("compose.realtime.yaml")
        named = [word for file in files for word in ("-f", str(DOCKER_DIR / file))]
        return run([*command, "-p", PROJECT, *named, *args], **more)

    def choose_capability(self):
        """Lets the daemons load their fence by CAP_BPF, or where the engine does not know that, by CAP_SYS_ADMIN."""
        made = self.docker("create", "--network", "none", "--cap-add", "BPF", IMAGE, check=False)
        if made.returncode == 0:
            self.docker("rm", made.stdout.strip())
        elif "unknown capability" in made.stderr:
            say("this engine does not know CAP_BPF: the daemons get CAP_SYS_ADMIN instead")
            os.environ["VIPD_LAB_BPF_CAPABILITY"] = "SYS_ADMIN"
        else:
            raise LabError(f"cannot make a container: {made.stderr.strip()}")

    # The image

    def has_image(self, image):
        return self.docker("image", "inspect", image, check=False).returncode == 0

    def image_label(self, image, label=LABEL):
        done = self.docker("image", "inspect", "--format", f'{{{{index .Config.Labels "{label}"}}}}', image, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    def absent(self, *images):
        """Those that are not there, and those that an earlier build of the lab's image has pulled."""
        pulled = (self.image_label(IMAGE, PULLED_LABEL) or "").split()
        return [image for image in images if image in pulled or not self.has_image(image)]

    def remove_images(self):
        """Removes every image that the lab made or pulled. One that something else uses by now stays."""
        pulled = (self.image_label(IMAGE, PULLED_LABEL) or "").split()
        for image in (IMAGE, BASE_IMAGE):
            self.docker("image", "rm", image, check=False)
        # Former images of the lab, and what building them has left.
        for label in (LABEL, BUILD_STAGE_LABEL):
            self.docker("image", "prune", "-f", "--filter", f"label={label}", check=False)
        for image in pulled:
            self.docker("image", "rm", image, check=False)

    def ensure_image(self, programs, from_source):
        """Builds the lab's image unless it is made of these very files already."""
        programs = None if from_source else find_programs(programs)
        if programs is None:
            say("building the image from source, which takes minutes the first time")
            arguments = ["--target", "lab", "-t", IMAGE, "--label", f"{LABEL}=source"]
            arguments += ["--label", f"{PULLED_LABEL}={' '.join(self.absent(PULLED_BASE, PULLED_RUST))}"]
            arguments += ["--build-arg", f"VIPD_COMMIT={commit()}", "--build-arg", "MADE_BY=lab"]
            done = subprocess.run(["docker", "build", "-f", DOCKER_DIR / "Dockerfile", *arguments, ROOT])
            if done.returncode != 0:
                raise LabError("cannot build the image from source. Where no image can be pulled, `make build` first")
            return
        contents = digest([*(programs / name for name in PROGRAMS), *container_files()])
        if self.image_label(IMAGE) == contents:
            return
        pulled = self.absent(PULLED_BASE)
        base = self.base_image()
        pulled = pulled if base == PULLED_BASE else []
        say(f"making the image of {programs}")
        with tempfile.TemporaryDirectory(prefix="vipd-lab-") as context:
            context = Path(context)
            (context / "bin").mkdir()
            for name in PROGRAMS:
                strip(programs / name, context / "bin" / name)
            shutil.copytree(DOCKER_DIR / "container", context / "docker" / "container")
            shutil.copy(DOCKER_DIR / "Dockerfile", context)
            network = ["--network", "none"] if self.own else []
            self.docker(
                "build", *network, "--target", "prebuilt", "--build-arg", f"BASE={base}", "--label", f"{LABEL}={contents}",
                "--label", f"{PULLED_LABEL}={' '.join(pulled)}", "-t", IMAGE, str(context), timeout=300,
            )  # fmt: skip
        for name in PROGRAMS:
            done = self.docker("run", "--rm", "--network", "none", IMAGE, name, "--version", check=False)
            if done.returncode != 0:
                raise LabError(
                    f"{name} from {programs} does not run in the image: {done.stderr.strip()}\n"
                    "Build it on Debian 12, or use --from-source"
                )

    def base_image(self):
        """The image to build upon: the pulled one, or one made of Debian's packages where none can be pulled."""
        for image in (BASE_IMAGE, PULLED_BASE):
            if self.has_image(image):
                return image
        if not self.own:
            say(f"pulling {PULLED_BASE}")
            try:
                self.docker("pull", PULLED_BASE, timeout=120)
                return PULLED_BASE
            except LabError as error:
                say(f"that failed: {error}")
        if os.geteuid() != 0 or not (shutil.which("debootstrap") or Path("/usr/sbin/debootstrap").exists()):
            raise Unavailable(
                f"cannot pull {PULLED_BASE}. Making a base image of Debian's packages needs root and debootstrap"
            )
        say("making a base image of Debian's packages, which takes about a minute")
        with tempfile.TemporaryDirectory(prefix="vipd-lab-base-") as tree:
            debootstrap(tree)
            tar = subprocess.Popen(["tar", "-C", tree, "-c", "."], stdout=subprocess.PIPE)
            done = subprocess.run(["docker", "import", "-", BASE_IMAGE], stdin=tar.stdout, capture_output=True, text=True)
            if tar.wait() != 0 or done.returncode != 0:
                raise LabError(f"docker import: {done.stderr.strip()}")
        return BASE_IMAGE


# What debootstrap says where no mirror answers, or where it may not mount or make devices.
BEYOND_US = "not done within|[Ff]ailed getting|[Cc]ouldn't download|[Cc]annot install into|not permitted|[Ii]nvalid Release"


def debootstrap(tree):
    """The files of Debian 12 and of what the lab needs, in a directory.

    Unpacked and not configured, which takes half of the time: an image that is never installed into needs no more than
    users and the cache of libraries.
    """
    tree = Path(tree)
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    command = ["debootstrap", "--foreign", "--variant=minbase", "--include=iproute2,nftables", "bookworm", tree]
    # A mirror that hangs is ended by `timeout`, by SIGTERM: debootstrap unmounts what it has mounted then.
    done = run(["timeout", "-k", "20", "240", *command], timeout=300, env=environment, check=False)
    # The directory will be removed, and nothing that is mounted there with it.
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if (mounted := line.split()[4]).startswith(f"{tree}/"):
            run(["umount", "-l", mounted], check=False)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).splitlines()[-2:] if done.returncode not in (124, 137) else ["not done within 240 s"]
        # Whatever else it complains of may be our doing.
        kind = Unavailable if re.search(BEYOND_US, " ".join(words)) else LabError
        raise kind(f"cannot make a base image: debootstrap: {' '.join(words)}")
    # It has unpacked what every Debian needs; the rest was only fetched.
    for package in (tree / "debootstrap/base").read_text().split():
        for archive in (tree / "var/cache/apt/archives").glob(f"{package}_*.deb"):
            run(["sh", "-ec", 'dpkg-deb --fsys-tarfile "$1" | tar -C "$2" -x --keep-directory-symlink', "sh", archive, tree])
    for name in ("passwd", "group"):
        shutil.copy(tree / f"usr/share/base-passwd/{name}.master", tree / f"etc/{name}")
    run(["chroot", tree, "/sbin/ldconfig"], env=environment)
    # In a container it leaves a link to /proc in its place.
    if (proc := tree / "proc").is_symlink():
        proc.unlink()
        proc.mkdir()
    for name in ("debootstrap", "var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(tree / name, ignore_errors=True)


def commit():
    """Which commit this tree is, for `--version`: the build in an image cannot see it. Empty outside of a repository."""
    if told := os.environ.get("VIPD_COMMIT"):
        return told
    if not shutil.which("git"):
        return ""
    head = run(["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"], check=False)
    if head.returncode != 0:
        return ""
    changed = run(["git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no"], check=False).stdout.strip()
    return head.stdout.strip() + (", modified" if changed else "")


def find_programs(told):
    """The directory with all programs: as told, or $VIPD_LAB_PROGRAMS, or what cargo built. None if there is none."""
    told = told or os.environ.get("VIPD_LAB_PROGRAMS")
    candidates = [Path(told)] if told else [ROOT / "target/release", ROOT / "target/debug"]
    for path in candidates:
        if all((path / name).is_file() for name in PROGRAMS):
            return path.resolve()
    if told:
        raise LabError(f"{told} does not have {', '.join(PROGRAMS)}")
    return None


def container_files():
    return [DOCKER_DIR / "Dockerfile", *sorted((DOCKER_DIR / "container").iterdir())]


def digest(files):
    sums = hashlib.sha256()
    for file in files:
        sums.update(f"{file.name} {file.stat().st_mode:o} {file.stat().st_size}\n".encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                sums.update(block)
    return sums.hexdigest()[:32]


def strip(source, target):
    """Without what only debuggers need; as it is where there is no strip."""
    if not shutil.which("strip") or run(["strip", "--strip-debug", "-o", target, source], check=False).returncode != 0:
        shutil.copy(source, target)
    target.chmod(0o755)
