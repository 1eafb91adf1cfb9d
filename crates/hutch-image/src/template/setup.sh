# Runs as root inside the new root file system, after the packages are there. Part of the template's digest.
# $1 = the PATH of sessions, $2 = the wheels' directory, the rest = Python packages.
set -eu

path=$1
wheels=$2
shift 2

# The user of all sessions.
groupadd --gid 1000 agent
useradd --uid 1000 --gid 1000 --groups docker,sudo --create-home --shell /bin/bash agent
cat >/etc/sudoers.d/agent <<END
agent ALL=(ALL:ALL) NOPASSWD:ALL
Defaults:agent secure_path="$path"
Defaults:agent env_keep += "HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy BASH_ENV"
Defaults:agent !lecture
END
chmod 0440 /etc/sudoers.d/agent

# Variables that are to outlive a session: the agent writes them here, each shell reads them.
cat >/etc/sandbox-persistent.sh <<'END'
# Read by every bash, interactive or not. Write `export NAME=value` here to keep a variable.
END
chown agent:agent /etc/sandbox-persistent.sh
chmod 0644 /etc/sandbox-persistent.sh
# A login shell sets PATH itself, and an interactive one does not read BASH_ENV.
cat >/etc/profile.d/sandbox.sh <<END
export PATH="$path"
export NPM_CONFIG_PREFIX=/usr/local/share/npm-global
[ ! -r /etc/sandbox-persistent.sh ] || . /etc/sandbox-persistent.sh
END
echo '[ ! -r /etc/sandbox-persistent.sh ] || . /etc/sandbox-persistent.sh' >>/etc/bash.bashrc
echo "PATH=\"$path\"" >/etc/environment

# npm installs commands where the agent may write.
mkdir -p /usr/local/share/npm-global/bin /usr/local/share/npm-global/lib/node_modules
chown -R agent:agent /usr/local/share/npm-global

# pip belongs to whoever works in the sandbox; there is no one else whose packages it could break.
rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
if [ "$#" -gt 0 ]; then
	offline=""
	if [ -d "$wheels" ]; then
		offline="--no-index --find-links=$wheels"
	fi
	# shellcheck disable=SC2086
	python3 -m pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore --no-compile \
		$offline "$@"
fi

# Debian's name for fd differs from everybody's.
ln -sf /usr/bin/fdfind /usr/local/bin/fd

# Nothing starts by itself: packages installed later in the sandbox must not start services either.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 0755 /usr/sbin/policy-rc.d

# What must be a sandbox's own, or is of no use in an image.
: >/etc/machine-id
rm -f /var/lib/dbus/machine-id /etc/ssh/ssh_host_* /etc/hostname /etc/resolv.conf
rm -rf "$wheels" /root/.cache /var/log/apt /var/log/dpkg.log /var/log/alternatives.log /var/cache/debconf/*-old
mkdir -p /var/log/apt
