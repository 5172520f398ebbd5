# Installs, upgrades and removes the incident-rca agent as a Windows service. Windows PowerShell 5.1 or newer, as administrator.
#
#   $env:PLATFORM_API_URL = 'https://...'; $env:AGENT_TOKEN = '...'; Invoke-RestMethod -UseBasicParsing -Uri https://.../install/windows.ps1 | Invoke-Expression
#   powershell -File windows.ps1 [-DryRun] [-Version V] [-NoStart] [-Uninstall] [-Purge] [-ServiceName NAME]
#
#   -DryRun       check everything, say what would be done, and change nothing
#   -Version V    install this version, even where it is lower than the one that is installed
#   -NoStart      install without starting the service, neither now nor at boot
#   -Uninstall    remove service, program, configuration, token, state and event source; needs neither token nor platform
#   -Purge        as -Uninstall, and remove the state of runs in the foreground
#   -ServiceName  name of service and directories (incident-rca-agent)
#
# From the environment: PLATFORM_API_URL, AGENT_TOKEN or TOKEN_FILE, SERVICE_NAME, HTTPS_PROXY, HTTP_PROXY, NO_PROXY, CA_FILE (for the
# agent; downloads trust what Windows trusts), and the agent's options. A failure is an error whose first line says why.
#
# The platform that serves this script fills in the version and the public key below. What it downloads is checked against that key and
# against checksums before any of it runs. Everything stands in functions, so that a download which is cut off does nothing.
param(
    [switch]$Uninstall,
    [switch]$Purge,
    [string]$ServiceName = '',
    [string]$Version = '',
    [switch]$NoStart,
    [switch]$DryRun
)

function Invoke-IncidentRcaInstaller {
    param(
        [bool]$Uninstall,
        [bool]$Purge,
        [string]$ServiceName,
        [string]$Version,
        [bool]$NoStart,
        [bool]$DryRun
    )

    $ErrorActionPreference = 'Stop'
    $ProgressPreference = 'SilentlyContinue'
    Set-StrictMode -Version 2

    $ScriptVersion = '@IRCA_VERSION@'
    $PublicKey = '@IRCA_PUBLIC_KEY@'
    # The agent's options, as it reads them from its environment; a test compares them with its configuration.
    $Options = 'LOG_LEVEL LOG_FORMAT COLLECT_INTERVAL HEARTBEAT_INTERVAL REQUEST_TIMEOUT STATE_DIR SPOOL_MAX_BYTES SPOOL_MAX_AGE CA_FILE LABELS LOCKED_OPTIONS CUSTOM_COMMANDS CUSTOM_PROMETHEUS CUSTOM_PROMETHEUS_HOSTS CUSTOM_PROMETHEUS_LABELS CUSTOM_OTLP_ENDPOINT CUSTOM_INTERVAL CUSTOM_TIMEOUT CUSTOM_MAX_SERIES CUSTOM_MAX_BYTES COLLECTORS CPU_PER_CORE DISK_EXCLUDE_DEVICES FILESYSTEM_EXCLUDE_TYPES FILESYSTEM_EXCLUDE_MOUNTS FILESYSTEM_TIMEOUT NETWORK_EXCLUDE_INTERFACES SYSTEMD_UNITS TOP_PROCESSES TOP_PROCESS_ARGUMENTS CHANGE_WATCHERS CHANGE_INTERVAL CHANGE_NOTIFY WATCH_FILES WATCH_FILES_EXCLUDE CERTIFICATE_PATHS CERTIFICATE_THRESHOLDS DISK_SPACE_THRESHOLD' -split '\s+'
    $Proxies = 'HTTPS_PROXY HTTP_PROXY NO_PROXY ALL_PROXY' -split ' '
    $LargestManifest = 262144
    $StartWithin = 30
    $LeastPython = [version]'3.11'
    $Did = @{ Step = ''; Staging = ''; Release = ''; Token = ''; Undo = $null; Lock = $null }

    # Ed25519 (RFC 8032), verification only: .NET Framework has none. A test runs these functions, put into Python line by line.

    $Two = [bigint]2
    $Prime = [bigint]::Subtract([bigint]::Pow($Two, 255), [bigint]19)
    $Order = [bigint]::Add([bigint]::Pow($Two, 252), [bigint]::Parse('27742317777372353535851937790883648493'))
    $CurveD = [bigint]::Parse('37095705934669439343138083508754565189542113879843219016388785533085940283555')
    $RootOfMinusOne = [bigint]::Parse('19681161376707505956807079304988542015446066515923890162744021073123829784752')
    $Base = @([bigint]::Parse('15112221349535400772501151409588531511454012693041857206046113283949847762202'), [bigint]::Parse('46316835694926478169428394003475163141307993866256225615783033603165251855960'), [bigint]1, [bigint]::Parse('46827403850823179245072216630277197565144205554125654976674165829533817101731'))

    function Add-Point($First, $Second) {
        $a = [bigint]::Remainder([bigint]::Multiply([bigint]::Add([bigint]::Subtract($First[1], $First[0]), $Prime), [bigint]::Add([bigint]::Subtract($Second[1], $Second[0]), $Prime)), $Prime)
        $b = [bigint]::Remainder([bigint]::Multiply([bigint]::Add($First[1], $First[0]), [bigint]::Add($Second[1], $Second[0])), $Prime)
        $c = [bigint]::Remainder([bigint]::Multiply([bigint]::Multiply($Two, $CurveD), [bigint]::Multiply($First[3], $Second[3])), $Prime)
        $d = [bigint]::Remainder([bigint]::Multiply($Two, [bigint]::Multiply($First[2], $Second[2])), $Prime)
        $e = [bigint]::Add([bigint]::Subtract($b, $a), $Prime)
        $f = [bigint]::Add([bigint]::Subtract($d, $c), $Prime)
        $g = [bigint]::Add($d, $c)
        $h = [bigint]::Add($b, $a)
        return @([bigint]::Remainder([bigint]::Multiply($e, $f), $Prime), [bigint]::Remainder([bigint]::Multiply($g, $h), $Prime), [bigint]::Remainder([bigint]::Multiply($f, $g), $Prime), [bigint]::Remainder([bigint]::Multiply($e, $h), $Prime))
    }

    function Get-Multiple($Scalar, $Point) {
        $result = @([bigint]0, [bigint]1, [bigint]1, [bigint]0)
        while ($Scalar.Sign -gt 0) {
            if (-not $Scalar.IsEven) {
                $result = Add-Point $result $Point
            }
            $Point = Add-Point $Point $Point
            $Scalar = [bigint]::Divide($Scalar, $Two)
        }
        return $result
    }

    function Test-SamePoint($First, $Second) {
        $x = [bigint]::Remainder([bigint]::Subtract([bigint]::Multiply($First[0], $Second[2]), [bigint]::Multiply($Second[0], $First[2])), $Prime)
        $y = [bigint]::Remainder([bigint]::Subtract([bigint]::Multiply($First[1], $Second[2]), [bigint]::Multiply($Second[1], $First[2])), $Prime)
        return $x.IsZero -and $y.IsZero
    }

    function Get-Point($Number) {
        $half = [bigint]::Pow($Two, 255)
        $odd = [bigint]::Divide($Number, $half)
        $y = [bigint]::Remainder($Number, $half)
        $square = [bigint]::Remainder([bigint]::Multiply($y, $y), $Prime)
        $above = [bigint]::Add([bigint]::Subtract($square, [bigint]1), $Prime)
        $below = [bigint]::Remainder([bigint]::Add([bigint]::Multiply($CurveD, $square), [bigint]1), $Prime)
        $inverse = [bigint]::ModPow($below, [bigint]::Subtract($Prime, $Two), $Prime)
        $xx = [bigint]::Remainder([bigint]::Multiply($above, $inverse), $Prime)
        $x = [bigint]::ModPow($xx, [bigint]::Divide([bigint]::Add($Prime, [bigint]3), [bigint]8), $Prime)
        if ([bigint]::Compare([bigint]::Remainder([bigint]::Multiply($x, $x), $Prime), $xx) -ne 0) {
            $x = [bigint]::Remainder([bigint]::Multiply($x, $RootOfMinusOne), $Prime)
        }
        if ([bigint]::Compare([bigint]::Remainder([bigint]::Multiply($x, $x), $Prime), $xx) -ne 0) {
            return $null
        }
        if ([bigint]::Compare($y, $Prime) -ge 0) {
            return $null
        }
        if ($x.IsZero -and $odd.IsOne) {
            return $null
        }
        if ($x.IsEven -eq $odd.IsOne) {
            $x = [bigint]::Subtract($Prime, $x)
        }
        return @($x, $y, [bigint]1, [bigint]::Remainder([bigint]::Multiply($x, $y), $Prime))
    }

    # All four are numbers: the key and the signature's halves as little-endian ones, and SHA-512 of first half, key and message.
    function Test-Signature($Key, $FirstHalf, $SecondHalf, $Digest) {
        $point = Get-Point $Key
        $commitment = Get-Point $FirstHalf
        if ($null -eq $point) {
            return $false
        }
        if ($null -eq $commitment) {
            return $false
        }
        if ([bigint]::Compare($SecondHalf, $Order) -ge 0) {
            return $false
        }
        $small = Get-Multiple ([bigint]8) $point
        $neutral = @([bigint]0, [bigint]1, [bigint]1, [bigint]0)
        if (Test-SamePoint $small $neutral) {
            return $false
        }
        $challenge = [bigint]::Remainder($Digest, $Order)
        $left = Get-Multiple $SecondHalf $Base
        $term = Get-Multiple $challenge $point
        $right = Add-Point $commitment $term
        return Test-SamePoint $left $right
    }

    # The end of Ed25519.

    function ConvertFrom-LittleEndian([byte[]]$Bytes) {
        return [bigint]::new([byte[]]($Bytes + [byte]0))
    }

    function Test-ManifestSignature([byte[]]$Manifest, [byte[]]$Signature) {
        $key = [Convert]::FromBase64String($PublicKey)
        if ($key.Length -ne 32 -or $Signature.Length -ne 64) { return $false }
        [byte[]]$first = $Signature[0..31]
        $hash = [System.Security.Cryptography.SHA512]::Create()
        [byte[]]$digest = $hash.ComputeHash([byte[]]($first + $key + $Manifest))
        return Test-Signature (ConvertFrom-LittleEndian $key) (ConvertFrom-LittleEndian $first) (ConvertFrom-LittleEndian $Signature[32..63]) (ConvertFrom-LittleEndian $digest)
    }

    function Write-Line($Text) { Write-Host "incident-rca: $Text" }

    function Stop-Installation($Item, $Reason) {
        $Did.Step = $Item
        throw $Reason
    }

    function Get-EnvironmentText($Name) {
        $text = [Environment]::GetEnvironmentVariable($Name)
        if ($null -eq $text) { return '' }
        return $text
    }

    # Runs a program; its output, and its exit code in $Did. What it writes as an error must not end this script.
    function Invoke-Program($Program, $Words) {
        $ErrorActionPreference = 'Continue'
        $output = & $Program @Words 2>&1
        $Did.Code = $LASTEXITCODE
        return ($output | Out-String).Trim()
    }

    function Invoke-Required($Program, $Words) {
        $output = Invoke-Program $Program $Words
        if ($Did.Code -ne 0) { throw "$Program $($Words[0]) ended with exit code $($Did.Code): $output" }
    }

    function Get-WebArguments($Uri) {
        $arguments = @{ Uri = $Uri; UseBasicParsing = $true; TimeoutSec = 300; MaximumRedirection = 3 }
        $proxy = Get-EnvironmentText 'HTTPS_PROXY'
        if ($Uri -like 'http://*') { $proxy = Get-EnvironmentText 'HTTP_PROXY' }
        $exempt = (Get-EnvironmentText 'NO_PROXY') -split '\s*,\s*'
        if ($proxy -and $exempt -notcontains ([uri]$Uri).Host) { $arguments.Proxy = $proxy }
        return $arguments
    }

    function Save-File($Uri, $Path, $Item) {
        $arguments = Get-WebArguments $Uri
        try { Invoke-WebRequest @arguments -OutFile $Path }
        catch { Stop-Installation $Item "${Uri}: $($_.Exception.Message)" }
    }

    # Tells the platform how far this is; whether it hears of it changes nothing.
    function Send-Progress($Step, $Check, $Reason) {
        if ($DryRun -or $Uninstall -or -not $Did.Token) { return }
        $body = ConvertTo-Json -Compress @{ step = $Step; host = [Environment]::MachineName; check = $Check; reason = $Reason }
        $arguments = Get-WebArguments "$($Did.Platform)/api/v1/agent/progress"
        $arguments.TimeoutSec = 2
        $headers = @{ Authorization = "Bearer $($Did.Token)" }
        try { $null = Invoke-RestMethod @arguments -Method Post -Headers $headers -ContentType 'application/json' -Body $body }
        catch { return }
    }

    function Initialize-Names {
        $name = $ServiceName
        if (-not $name) { $name = Get-EnvironmentText 'SERVICE_NAME' }
        if (-not $name) { $name = 'incident-rca-agent' }
        if ($name -cnotmatch '^[a-z][a-z0-9-]{0,63}$') {
            Stop-Installation 'usage' "ServiceName must be lower-case letters, digits and hyphens, not '$name'"
        }
        $Did.Name = $name
        $Did.Program = Join-Path $env:ProgramFiles $name
        $Did.Data = Join-Path $env:ProgramData $name
        $Did.Settings = Join-Path $Did.Data 'environment.json'
        $Did.TokenFile = Join-Path $Did.Data 'token'
        $Did.StateDir = Join-Path $Did.Data 'state'
        $Did.Source = "HKLM:\SYSTEM\CurrentControlSet\Services\EventLog\Application\$name"
        $Did.Sc = Join-Path $env:SystemRoot 'System32\sc.exe'
        $Did.Icacls = Join-Path $env:SystemRoot 'System32\icacls.exe'
        $Did.Tar = Join-Path $env:SystemRoot 'System32\tar.exe'
    }

    function Assert-Host {
        if ($env:OS -ne 'Windows_NT') { Stop-Installation 'preflight system' 'this script is for Windows' }
        $identity = [System.Security.Principal.WindowsIdentity]::GetCurrent()
        $administrator = [System.Security.Principal.WindowsBuiltInRole]::Administrator
        $elevated = ([System.Security.Principal.WindowsPrincipal]$identity).IsInRole($administrator)
        if (-not $elevated -and -not $DryRun) {
            Stop-Installation 'preflight administrator' 'this needs an administrator: open PowerShell with "Run as administrator" and run the command there'
        }
        if (-not (Test-Path -LiteralPath $Did.Tar)) {
            Stop-Installation 'preflight tools' 'tar.exe is not there: Windows 10 1803, Windows Server 2019 or newer is needed'
        }
        $Did.Machine = $env:PROCESSOR_ARCHITECTURE
        if (Test-Path Env:PROCESSOR_ARCHITEW6432) { $Did.Machine = $env:PROCESSOR_ARCHITEW6432 }
        $known = @{ AMD64 = 'x86_64'; ARM64 = 'aarch64' }
        if ($known.ContainsKey($Did.Machine)) { $Did.Machine = $known[$Did.Machine] }
    }

    # Only what is installed for all users: the service's account may not read what is in somebody's profile.
    function Find-Python {
        $Did.Python = ''
        $Did.PythonVersion = ''
        $Did.PythonMachine = ''
        foreach ($place in @(Get-ChildItem -Path 'HKLM:\SOFTWARE\Python\PythonCore' -ErrorAction SilentlyContinue)) {
            $key = Join-Path $place.PSPath 'InstallPath'
            if (-not (Test-Path $key)) { continue }
            $path = (Get-Item $key).GetValue('ExecutablePath')
            if (-not $path) { $path = Join-Path ([string](Get-Item $key).GetValue('')) 'python.exe' }
            if (-not (Test-Path -LiteralPath $path)) { continue }
            $said = Invoke-Program $path @('-I', '-c', 'import ctypes, sqlite3, ssl, sys, sysconfig; print(sys.version.split()[0], sysconfig.get_platform())')
            if ($Did.Code -ne 0 -or $said -notmatch '^([0-9]+\.[0-9]+)[^ ]* win-(amd64|arm64)$') { continue }
            if ([version]$Matches[1] -lt $LeastPython) { continue }
            if ($Did.PythonVersion -and [version]$Matches[1] -lt [version]$Did.PythonVersion) { continue }
            $Did.Python = $path
            $Did.PythonVersion = $Matches[1]
            $Did.PythonMachine = @{ amd64 = 'x86_64'; arm64 = 'aarch64' }[$Matches[2]]
        }
    }

    function Read-Input {
        $known = Test-Path -LiteralPath $Did.Settings
        $url = Get-EnvironmentText 'PLATFORM_API_URL'
        $Did.KeepSettings = $known -and -not $url
        if ($Did.KeepSettings) { $url = (Get-Content -LiteralPath $Did.Settings -Raw -Encoding UTF8 | ConvertFrom-Json).PLATFORM_API_URL }
        $url = ([string]$url).TrimEnd('/')
        if ($url -notmatch '^https?://\S+$') { Stop-Installation 'usage' "PLATFORM_API_URL must be the platform's http or https URL, not '$url'" }
        $Did.Platform = $url
        $Did.CaFile = Get-EnvironmentText 'CA_FILE'
        if ($Did.CaFile -and -not (Test-Path -LiteralPath $Did.CaFile)) { Stop-Installation 'preflight ca' "CA_FILE $($Did.CaFile) cannot be read" }
    }

    function Read-Token {
        $token = Get-EnvironmentText 'AGENT_TOKEN'
        $file = Get-EnvironmentText 'TOKEN_FILE'
        if (-not $token -and $file) { $token = [string](Get-Content -LiteralPath $file -TotalCount 1) }
        $Did.OldToken = ''
        if (Test-Path -LiteralPath $Did.TokenFile) { $Did.OldToken = ([string](Get-Content -LiteralPath $Did.TokenFile -TotalCount 1)).Trim() }
        if (-not $token) { $token = $Did.OldToken }
        if (-not $token -and [Environment]::UserInteractive) {
            $asked = Read-Host -AsSecureString -Prompt 'incident-rca: enrolment token'
            $token = (New-Object System.Net.NetworkCredential('', $asked)).Password
        }
        $token = ([string]$token).Trim()
        if (-not $token) { Stop-Installation 'preflight token' 'there is no enrolment token: set AGENT_TOKEN or TOKEN_FILE' }
        if ($token -notmatch '^[!-~]+$') { Stop-Installation 'preflight token' 'the enrolment token holds characters that no token has' }
        $Did.Token = $token
    }

    function Assert-Platform {
        $arguments = Get-WebArguments "$($Did.Platform)/healthz"
        try { $null = Invoke-WebRequest @arguments }
        catch { Stop-Installation 'preflight platform' "$($Did.Platform)/healthz: $($_.Exception.Message)" }
        $arguments = Get-WebArguments "$($Did.Platform)/api/v1/agent/whoami"
        try { $null = Invoke-WebRequest @arguments -Headers @{ Authorization = "Bearer $($Did.Token)" } }
        catch {
            $status = 0
            if ($_.Exception.PSObject.Properties['Response'] -and $_.Exception.Response) { $status = [int]$_.Exception.Response.StatusCode }
            if (@(401, 403) -notcontains $status) { return }
            if ($Did.Token -eq $Did.OldToken) {
                Write-Warning 'incident-rca: the platform refuses the token; an agent that has enrolled needs it no more'
            }
            else { Stop-Installation 'preflight token' "the platform refuses the enrolment token (HTTP status $status)" }
        }
    }

    # A text that sorts as versions do (X.Y.Z, aN, bN or rcN before it, .devN before those); empty if it is none.
    function Get-VersionKey($Text) {
        if ($Text -cnotmatch '^([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})(?:(a|b|rc)([0-9]{1,6}))?(?:\.dev([0-9]{1,6}))?$') { return '' }
        $rank = 4
        $number = 0
        $development = 9999999
        if ($Matches.ContainsKey(6)) {
            $development = [int]$Matches[6]
            $rank = 0
        }
        if ($Matches.ContainsKey(4)) {
            $rank = @{ a = 1; b = 2; rc = 3 }[$Matches[4]]
            $number = [int]$Matches[5]
        }
        return '{0:d6}{1:d6}{2:d6}{3}{4:d6}{5:d7}' -f [int]$Matches[1], [int]$Matches[2], [int]$Matches[3], $rank, $number, $development
    }

    # Newer PowerShells make dates of JSON's texts themselves.
    function ConvertTo-Time($Value) {
        if ($Value -is [datetime]) { return $Value.ToUniversalTime() }
        $style = [System.Globalization.DateTimeStyles]'AssumeUniversal, AdjustToUniversal'
        return [datetime]::ParseExact($Value, "yyyy-MM-dd'T'HH:mm:ss'Z'", [System.Globalization.CultureInfo]::InvariantCulture, $style)
    }

    function Get-Manifest($Place) {
        $file = Join-Path $Did.Staging 'manifest.json'
        Save-File "$Place/manifest.json" $file 'manifest'
        Save-File "$Place/manifest.json.sig" "$file.sig" 'manifest'
        [byte[]]$content = [System.IO.File]::ReadAllBytes($file)
        if ($content.Length -gt $LargestManifest) { Stop-Installation 'manifest' "it is larger than $LargestManifest bytes" }
        if (-not (Test-ManifestSignature $content ([System.IO.File]::ReadAllBytes("$file.sig")))) {
            Stop-Installation 'signature' 'the manifest was not signed with the key that came with this script'
        }
        return [System.Text.Encoding]::UTF8.GetString($content) | ConvertFrom-Json
    }

    function Read-Manifest {
        if ($PublicKey -cnotmatch '^[A-Za-z0-9+/]{43}=$') {
            Stop-Installation 'key' 'this copy of the script carries no public key: take the one that the platform serves'
        }
        $place = "$($Did.Platform)/packages"
        if ($Version) {
            if (-not (Get-VersionKey $Version)) { Stop-Installation 'usage' "'$Version' is no version" }
            $place = "$place/$Version"
        }
        $manifest = Get-Manifest $place
        if ($manifest.format -ne 1 -or $manifest.product -cne 'incident-rca-agent') {
            Stop-Installation 'manifest' 'it is of a format or product that this script does not know'
        }
        $key = Get-VersionKey $manifest.version
        if (-not $key) { Stop-Installation 'manifest' "its version is '$($manifest.version)', which is none" }
        $now = [datetime]::UtcNow
        if ($now -gt (ConvertTo-Time $manifest.expires)) {
            Stop-Installation 'manifest expired' "the manifest of version $($manifest.version) ended at $($manifest.expires); this machine's clock says $($now.ToString('u'))"
        }
        if ((ConvertTo-Time $manifest.created) -gt $now.AddDays(1)) {
            Stop-Installation 'preflight clock' "the manifest was made at $($manifest.created), but this machine's clock says $($now.ToString('u')): set the clock"
        }
        if ($Version -and $manifest.version -cne $Version) {
            Stop-Installation 'version' "the platform answers with version $($manifest.version) instead of $Version"
        }
        if (-not $Version -and $Did.Installed -and [string]::CompareOrdinal($key, (Get-VersionKey $Did.Installed)) -lt 0) {
            Stop-Installation 'version' "the platform serves $($manifest.version), and $($Did.Installed) is installed; -Version $($manifest.version) installs the lower one all the same"
        }
        return $manifest
    }

    # A bundle where Python is there, for it is smaller and gets Python's security fixes, else the executable.
    function Select-Package($Manifest) {
        foreach ($kind in 'bundle', 'executable') {
            $machine = $Did.Machine
            if ($kind -eq 'bundle') { $machine = $Did.PythonMachine }
            foreach ($file in $Manifest.files) {
                if ($file.kind -cne $kind -or @('any', 'windows') -cnotcontains $file.os -or @('any', $machine) -cnotcontains $file.arch) { continue }
                if ($kind -eq 'bundle' -and -not $Did.Python) { continue }
                if ($file.name -cnotmatch '^[A-Za-z0-9][A-Za-z0-9._+-]*$' -or $file.sha256 -cnotmatch '^[0-9a-f]{64}$' -or $file.size -le 0) {
                    Stop-Installation 'manifest' "it describes the $kind wrongly"
                }
                return $file
            }
        }
        $python = 'Python 3.11 or newer is not installed for all users'
        if ($Did.Python) { $python = "Python $($Did.PythonVersion) for $($Did.PythonMachine) is here" }
        Stop-Installation 'preflight python' "no package of version $($Manifest.version) runs here on $($Did.Machine): $python, and there is no executable"
    }

    # The directory of what is installed, which the service's command line names.
    function Get-InstalledService {
        $service = Get-CimInstance -ClassName Win32_Service -Filter "Name='$($Did.Name)'"
        $Did.Service = $service
        $Did.Installed = ''
        $Did.OldPath = ''
        if ($null -eq $service) { return }
        $Did.OldPath = $service.PathName
        $directory = [regex]::Match($service.PathName, [regex]::Escape($Did.Program) + '\\([^\\"]+)').Groups[1].Value
        $file = Join-Path (Join-Path $Did.Program $directory) 'VERSION'
        if ($directory -and (Test-Path -LiteralPath $file)) { $Did.Installed = (Get-Content -LiteralPath $file -TotalCount 1).Trim() }
    }

    function Save-Package($Manifest, $File) {
        $Did.Step = 'download'
        $archive = Join-Path $Did.Staging $File.name
        Save-File "$($Did.Platform)/packages/$($Manifest.version)/$($File.name)" $archive 'download'
        if ((Get-Item -LiteralPath $archive).Length -ne $File.size) { Stop-Installation 'download' "$($File.name) is not $($File.size) bytes, as the manifest says" }
        if ((Get-FileHash -LiteralPath $archive -Algorithm SHA256).Hash -ne $File.sha256) { Stop-Installation 'checksum' "$($File.name) is not what the manifest describes" }
        Send-Progress 'downloaded' '' ''
        $Did.Step = 'unpack'
        $unpacked = Join-Path $Did.Staging 'unpacked'
        $release = Join-Path $Did.Staging 'release'
        $null = New-Item -ItemType Directory -Path $unpacked, $release
        Invoke-Required $Did.Tar @('-xzf', $archive, '-C', $unpacked)
        if ($File.kind -eq 'bundle') {
            $packages = Join-Path $release 'site-packages'
            $null = New-Item -ItemType Directory -Path $packages
            foreach ($wheel in Get-ChildItem -Path (Join-Path $unpacked 'wheels\*.whl')) {
                Invoke-Required $Did.Tar @('-xf', $wheel.FullName, '-C', $packages)
            }
            $launcher = @('import os', 'import sys', '', 'sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "site-packages"))', 'from connectors.cli import main', '', 'sys.exit(main())', '')
            [System.IO.File]::WriteAllText((Join-Path $release 'incident-rca-agent.py'), ($launcher -join "`n"))
            $null = Invoke-Program $Did.Python @('-I', '-m', 'compileall', '-q', $packages)
        }
        else {
            Move-Item -LiteralPath (Join-Path $unpacked 'incident-rca-agent') -Destination (Join-Path $release 'program')
        }
        Set-Content -LiteralPath (Join-Path $release 'VERSION') -Value $Manifest.version -Encoding ASCII
        Set-Content -LiteralPath (Join-Path $release 'PACKAGE') -Value $File.sha256 -Encoding ASCII
        Move-Item -LiteralPath $release -Destination $Did.Release
        $Did.MadeRelease = $true
    }

    # The program and its first words. Python itself and no virtual environment's, which starts another process that Windows does not know.
    function Get-CommandWords($File) {
        if ($File.kind -eq 'bundle') { return @($Did.Python, '-I', (Join-Path $Did.Release 'incident-rca-agent.py')) }
        return @((Join-Path $Did.Release 'program\incident-rca-agent.exe'))
    }

    function Install-Release($Manifest, $File) {
        $Did.Release = Join-Path $Did.Program $Manifest.version
        foreach ($again in 1, 2) {
            $mark = Join-Path $Did.Release 'PACKAGE'
            if (-not (Test-Path -LiteralPath $Did.Release)) { break }
            if ((Test-Path -LiteralPath $mark) -and (Get-Content -LiteralPath $mark -TotalCount 1).Trim() -eq $File.sha256) { break }
            $Did.Release = Join-Path $Did.Program "$($Manifest.version)-$($File.sha256.Substring(0, 8))"
        }
        if (Test-Path -LiteralPath $Did.Release) { Send-Progress 'downloaded' '' '' }
        else { Save-Package $Manifest $File }
        $words = @(Get-CommandWords $File)
        $said = Invoke-Program $words[0] (@($words | Select-Object -Skip 1) + 'version')
        if ($Did.Code -ne 0) { Stop-Installation 'preflight exec' "the program does not run from $($Did.Release): $said" }
    }

    function Get-Settings {
        $settings = [ordered]@{ PLATFORM_API_URL = $Did.Platform; AGENT_TYPE = 'server'; AGENT_TOKEN_FILE = $Did.TokenFile; STATE_DIR = $Did.StateDir }
        foreach ($name in $Options + $Proxies) {
            $value = Get-EnvironmentText $name
            if ($name -eq 'CA_FILE' -and $value) { $value = Join-Path $Did.Data 'ca.pem' }
            if ($value) { $settings[$name] = $value }
        }
        return ConvertTo-Json $settings
    }

    function Get-Bytes($Path) {
        if (Test-Path -LiteralPath $Path) { return [System.IO.File]::ReadAllBytes($Path) }
        return $null
    }

    function Set-Bytes($Path, $Content) {
        if ($null -ne $Content) { [System.IO.File]::WriteAllBytes($Path, [byte[]]$Content) }
        elseif (Test-Path -LiteralPath $Path) { Remove-Item -LiteralPath $Path -Force }
    }

    # SYSTEM and Administrators everything, the service's own account only what it needs; nobody else even sees the token.
    function Set-Permissions {
        $account = "NT SERVICE\$($Did.Name)"
        $owners = @('/inheritance:r', '/grant:r', '*S-1-5-18:(OI)(CI)F', '*S-1-5-32-544:(OI)(CI)F')
        Invoke-Required $Did.Icacls @($Did.Data, '/setowner', '*S-1-5-32-544', '/T', '/C', '/Q')
        Invoke-Required $Did.Icacls (@($Did.Data) + $owners + @("${account}:(OI)(CI)RX", '/Q'))
        foreach ($place in $Did.StateDir, (Join-Path $Did.Data 'logs')) {
            Invoke-Required $Did.Icacls (@($place) + $owners + @("${account}:(OI)(CI)M", '/Q'))
        }
        Invoke-Required $Did.Icacls @($Did.TokenFile, '/inheritance:r', '/grant:r', '*S-1-5-18:F', '*S-1-5-32-544:F', "${account}:R", '/Q')
    }

    function Register-EventSource {
        if (-not (Test-Path $Did.Source)) { $null = New-Item -Path $Did.Source -Force }
        $null = New-ItemProperty -Path $Did.Source -Name EventMessageFile -PropertyType ExpandString -Value '%SystemRoot%\System32\EventCreate.exe' -Force
        $null = New-ItemProperty -Path $Did.Source -Name TypesSupported -PropertyType DWord -Value 7 -Force
    }

    function Set-ServicePath($Path) {
        $service = Get-CimInstance -ClassName Win32_Service -Filter "Name='$($Did.Name)'"
        $answer = Invoke-CimMethod -InputObject $service -MethodName Change -Arguments @{ PathName = $Path }
        if ($answer.ReturnValue -ne 0) { throw "the service's command line cannot be changed (error $($answer.ReturnValue))" }
    }

    function Install-Service($File) {
        $Did.Step = 'configuration'
        $words = @(Get-CommandWords $File)
        $path = ($words + @('service', $Did.Name, $Did.Data) | ForEach-Object { if ($_ -match '\s') { "`"$_`"" } else { $_ } }) -join ' '
        $Did.Undo = @{
            Settings = Get-Bytes $Did.Settings
            Token = Get-Bytes $Did.TokenFile
            Ca = Get-Bytes (Join-Path $Did.Data 'ca.pem')
            State = Test-Path -LiteralPath $Did.StateDir
        }
        $null = New-Item -ItemType Directory -Force -Path $Did.Data, $Did.StateDir, (Join-Path $Did.Data 'logs')
        if ($null -eq $Did.Service) {
            $null = New-Service -Name $Did.Name -BinaryPathName $path -DisplayName 'incident-rca agent' -Description 'Connects this machine to incident root-cause analysis.' -StartupType Automatic
            $Did.MadeService = $true
            # An account of its own, which Windows makes and which may do nothing but what it is granted here.
            Invoke-Required $Did.Sc @('config', $Did.Name, 'obj=', "NT SERVICE\$($Did.Name)")
        }
        elseif ($Did.OldPath -cne $path) { Set-ServicePath $path }
        $mode = 'delayed-auto'
        if ($NoStart) { $mode = 'demand' }
        Invoke-Required $Did.Sc @('config', $Did.Name, 'start=', $mode)
        Invoke-Required $Did.Sc @('failure', $Did.Name, 'reset=', '86400', 'actions=', 'restart/3000/restart/10000/restart/60000')
        Invoke-Required $Did.Sc @('failureflag', $Did.Name, '1')
        # Before there is anything in it: until now everybody may have been able to read the directory.
        if (-not (Test-Path -LiteralPath $Did.TokenFile)) { Set-Bytes $Did.TokenFile ([byte[]]@()) }
        Set-Permissions
        $Did.Changed = $Did.ContainsKey('MadeService') -or $Did.OldPath -cne $path -or $Did.OldToken -cne $Did.Token
        Set-Bytes $Did.TokenFile ([System.Text.Encoding]::ASCII.GetBytes("$($Did.Token)`r`n"))
        if (-not $Did.KeepSettings) {
            if ($Did.CaFile) { Copy-Item -LiteralPath $Did.CaFile -Destination (Join-Path $Did.Data 'ca.pem') -Force }
            $settings = Get-Settings
            if ($null -eq $Did.Undo.Settings -or [System.Text.Encoding]::UTF8.GetString($Did.Undo.Settings) -cne $settings) { $Did.Changed = $true }
            Set-Bytes $Did.Settings ([System.Text.Encoding]::UTF8.GetBytes($settings))
        }
        Register-EventSource
    }

    function Start-Agent {
        $Did.Step = 'start'
        $since = Get-Date
        Stop-Service -Name $Did.Name -Force
        Start-Service -Name $Did.Name
        $log = Join-Path $Did.Data 'logs\agent.log'
        for ($waited = 0; $waited -lt 15; $waited++) {
            Start-Sleep -Milliseconds 200
            if ((Get-Service -Name $Did.Name).Status -eq 'Stopped') {
                $said = ''
                if (Test-Path -LiteralPath $log) { $said = Get-Content -LiteralPath $log -Tail 1 }
                Stop-Installation 'start' "the service stops at once: $said"
            }
        }
        $Did.Undo = $null
        Send-Progress 'installed' '' ''
        $status = Join-Path $Did.StateDir 'status.json'
        for ($waited = 0; $waited -lt $StartWithin * 5; $waited++) {
            if ((Test-Path -LiteralPath $status) -and (Get-Item -LiteralPath $status).LastWriteTime -gt $since) {
                $text = Get-Content -LiteralPath $status -Raw
                if ($text -match '"enrolled": true' -and $text -notmatch '"state": "stopped"') {
                    Write-Line "the agent has enrolled with $($Did.Platform)"
                    return
                }
            }
            Start-Sleep -Milliseconds 200
        }
        Write-Warning "incident-rca: the agent has not enrolled yet; it goes on trying. See: $log"
    }

    function Restore-Before {
        if ($Did.ContainsKey('MadeService')) {
            $kept = $Did.Undo.State
            Remove-Everything $kept
            return
        }
        Set-Bytes $Did.Settings $Did.Undo.Settings
        Set-Bytes $Did.TokenFile $Did.Undo.Token
        Set-Bytes (Join-Path $Did.Data 'ca.pem') $Did.Undo.Ca
        Set-ServicePath $Did.OldPath
        if (-not $NoStart) { Restart-Service -Name $Did.Name -Force }
        if ($Did.ContainsKey('MadeRelease')) { Remove-Tree $Did.Release }
    }

    function Remove-Tree($Path) {
        if (Test-Path -LiteralPath $Path) { Remove-Item -LiteralPath $Path -Recurse -Force }
    }

    # All that an installation made; the state stays where it was there before.
    function Remove-Everything($KeepState) {
        $service = Get-Service -Name $Did.Name -ErrorAction SilentlyContinue
        if ($null -ne $service) {
            Stop-Service -Name $Did.Name -Force -ErrorAction SilentlyContinue
            Invoke-Required $Did.Sc @('delete', $Did.Name)
        }
        Remove-Tree $Did.Program
        if ($KeepState) { Get-ChildItem -LiteralPath $Did.Data -Force | Where-Object { $_.Name -ne 'state' } | ForEach-Object { Remove-Tree $_.FullName } }
        else { Remove-Tree $Did.Data }
        if (Test-Path $Did.Source) { Remove-Item -Path $Did.Source -Recurse -Force }
    }

    function Remove-Agent {
        $Did.Step = 'uninstall'
        $there = (Test-Path -LiteralPath $Did.Program) -or (Test-Path -LiteralPath $Did.Data) -or ($null -ne (Get-Service -Name $Did.Name -ErrorAction SilentlyContinue))
        if (-not $there -and -not $Purge) {
            Write-Line "$($Did.Name) is not installed here: nothing to remove"
            return
        }
        if ($DryRun) {
            Write-Line "dry run: this would stop the service $($Did.Name) and remove it with $($Did.Program), $($Did.Data) and its event source"
            return
        }
        Remove-Everything $false
        if ($Purge) { Remove-Tree (Join-Path $env:ProgramData 'incident-rca') }
        Write-Line "$($Did.Name) is removed, with its configuration and state"
    }

    function Write-Plan($Manifest, $File) {
        Write-Line 'dry run: nothing is changed. This would'
        Write-Line "  download $($File.name) ($($File.kind), $($File.size) bytes) of version $($Manifest.version), signed and with its checksum verified"
        if ($File.kind -eq 'bundle') { Write-Line "  run it with $($Did.Python) (Python $($Did.PythonVersion))" }
        Write-Line "  install it in $($Did.Program) as the service $($Did.Name), with configuration and state in $($Did.Data)"
    }

    function Install-Agent {
        Read-Input
        Find-Python
        Read-Token
        Get-InstalledService
        $place = [System.IO.Path]::GetTempPath()
        if (-not $DryRun) {
            $place = $Did.Program
            $null = New-Item -ItemType Directory -Force -Path $place
            Get-ChildItem -LiteralPath $place -Filter '.staging-*' -Force | ForEach-Object { Remove-Tree $_.FullName }
        }
        $Did.Staging = Join-Path $place ".staging-$([guid]::NewGuid().ToString('N'))"
        $null = New-Item -ItemType Directory -Path $Did.Staging
        Assert-Platform
        $manifest = Read-Manifest
        $file = Select-Package $manifest
        if ($DryRun) {
            Write-Plan $manifest $file
            return
        }
        Install-Release $manifest $file
        Install-Service $file
        if ($NoStart) {
            $Did.Undo = $null
            Write-Line "installed version $($manifest.version) in $($Did.Program); the service was not started: run this again without -NoStart"
        }
        elseif (-not $Did.Changed -and (Get-Service -Name $Did.Name).Status -eq 'Running') {
            $Did.Undo = $null
            Write-Line "version $($manifest.version) is installed already, and nothing has changed"
        }
        else {
            Start-Agent
            Write-Line "version $($manifest.version) is installed; the service $($Did.Name) runs"
        }
        $kept = Split-Path -Leaf $Did.Release
        Get-ChildItem -LiteralPath $Did.Program -Directory -Force | Where-Object { $_.Name -ne $kept -and $_.FullName -ne $Did.Staging } | ForEach-Object { Remove-Tree $_.FullName }
    }

    # One installation at a time; a mutex of a process that died is given to the next.
    function Lock-Installation {
        $mutex = New-Object System.Threading.Mutex($false, "Global\$($Did.Name)-installation")
        try { $held = $mutex.WaitOne(0) }
        catch [System.Threading.AbandonedMutexException] { $held = $true }
        if (-not $held) { Stop-Installation 'lock' 'another installation is at work on this host; run this again when it is done' }
        $Did.Lock = $mutex
    }

    try {
        [Net.ServicePointManager]::SecurityProtocol = [Net.ServicePointManager]::SecurityProtocol -bor [Net.SecurityProtocolType]::Tls12
        Initialize-Names
        Assert-Host
        if (-not $DryRun) { Lock-Installation }
        if ($Uninstall -or $Purge) { Remove-Agent }
        else { Install-Agent }
    }
    catch {
        $reason = $_.Exception.Message.TrimEnd('.')
        $outcome = 'Nothing was changed.'
        if ($null -ne $Did.Undo) {
            try {
                Restore-Before
                $outcome = 'What was there before is there again.'
            }
            catch { $outcome = "Undoing failed as well ($($_.Exception.Message)); run this again." }
        }
        elseif ($Did.ContainsKey('MadeRelease')) { Remove-Tree $Did.Release }
        Send-Progress 'failed' $Did.Step $reason
        throw "incident-rca: failed: $($Did.Step): $reason. $outcome"
    }
    finally {
        if ($Did.Staging) { Remove-Tree $Did.Staging }
        if ($Did.ContainsKey('Program') -and (Test-Path -LiteralPath $Did.Program) -and -not (Get-ChildItem -LiteralPath $Did.Program -Force)) { Remove-Tree $Did.Program }
        if ($null -ne $Did.Lock) { $Did.Lock.ReleaseMutex() }
    }
}

Invoke-IncidentRcaInstaller -Uninstall $Uninstall -Purge $Purge -ServiceName $ServiceName -Version $Version -NoStart $NoStart -DryRun $DryRun
